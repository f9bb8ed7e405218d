"""Weights as products of smaller ones: decompositions, their ranks, and pairs in place of what they replace."""
