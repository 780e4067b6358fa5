"""Weighted average pooling of patch features by the cls query."""
