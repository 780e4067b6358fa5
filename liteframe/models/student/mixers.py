"""Operators along time: the depthwise temporal convolution and the strided (compressing) convolution.

Shapes: B videos, T frames, N tokens a frame (cls first), C channels, (H,W) the patch grid.
"""

import math

import torch
from liteframe_kernels import strided_conv, temporal_conv
from torch import Tensor, nn

from liteframe.models.student.config import MIXERS


class TemporalConv(nn.Module):
    """Residual depthwise convolution along T, the same at every token: `x + conv(x)` (LiteFrame, arXiv 2605.17260).

    Weight and bias start at zero, so an untrained layer is the identity.
    """

    def __init__(self, dim: int, kernel: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim, kernel))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B,T,N,C] -> [B,T,N,C]. A single frame has no neighbours and passes unchanged."""
        if x.shape[1] == 1:
            # In training every parameter takes part, if only with a zero gradient: distributed training counts them.
            return x + 0 * (self.weight.sum() + self.bias.sum()).to(x.dtype) if self.training else x
        return temporal_conv(x, self.weight, self.bias, residual=True)


class StridedConv(nn.Module):
    """Depthwise convolution with kernel = stride = (t,h,w) that shortens the token grid; starts as the mean.

    The cls token is one per frame and constant over space: it sees the kernel summed over the spatial taps.
    """

    def __init__(self, dim: int, stride: tuple[int, int, int]):
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim, *stride), 1.0 / math.prod(stride)))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """[B,T,1+H*W,C] on grid (H,W) -> [B,T/t,1+H/h*W/w,C] and the new grid; t, h, w must divide T, H, W."""
        patches, cls = strided_conv(x[:, :, 1:].unflatten(2, grid), self.weight, self.bias, cls=x[:, :, 0])
        tokens = torch.cat([cls.unsqueeze(2), patches.flatten(2, 3)], dim=2)
        return tokens, (patches.shape[2], patches.shape[3])


def build_temporal_mixer(kind: str, dim: int, kernel: int) -> nn.Module:
    """One block's temporal mixer, a module [B,T,N,C] -> [B,T,N,C] that contains its own residual.

    Raises:
        ValueError: `kind` is not one of MIXERS.
    """
    if kind == "conv":
        return TemporalConv(dim, kernel)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"temporal_mixer={kind!r} is unknown; choose one of {', '.join(MIXERS)}")
