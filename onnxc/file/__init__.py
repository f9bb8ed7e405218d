"""A model's file, losslessly: what model.py is made of. In: bytes. Out: a graph to edit, and the same bytes again."""
