"""Which channels must be cut together: the graph of axes (graph.py), operators (operators.py), the cut (cutting.py)."""
