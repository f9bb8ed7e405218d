"""What a person reads of a run: tables, charts, and why things are as they are."""
