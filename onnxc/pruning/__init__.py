"""Weights with zeros: which ones go, and what the others become to make up for them."""
