"""What stands between two matrix products of a block: residual sum, temporal convolution, LayerNorm, in one pass."""
