"""Depthwise convolution along time, over `[B,T,N,C]`."""
