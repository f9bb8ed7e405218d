"""Weights as codes: formats, grids of values, solvers that round to them, and the nodes that unfold them at load."""
