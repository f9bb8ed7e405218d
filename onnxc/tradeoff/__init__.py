"""The models of a trade-off: what is kept of each, the way down the ladder, which of them stay."""
