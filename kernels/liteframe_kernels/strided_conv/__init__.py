"""Depthwise convolution with kernel = stride, over `[B,T,H,W,C]`."""
