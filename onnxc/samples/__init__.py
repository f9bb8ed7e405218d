"""Inputs for a model: what data.py is made of. In: files, functions, or the model alone. Out: checked samples."""
