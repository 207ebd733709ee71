"""Figures: a file a kind, with `gather` (run folders to the data behind the plot) and `draw` (that data to a matplotlib Figure)."""
