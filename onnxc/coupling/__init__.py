"""Which channels must be cut together: axes (graph.py), operators (operators.py and families), the cut (cutting.py)."""
