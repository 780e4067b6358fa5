"""What mixes frames: the table of temporal mixers, and the strided (compressing) convolution.

A mixer stands between a block's attention and its MLP. It owns how its parameters start, what it costs, which part of a
larger student's parameters a smaller one takes, and how far the block's own attention reaches. A new one is a class
here, a line in MIXERS, and one in the exporter's table of traceable forms.

Shapes: B videos, T frames, N tokens a frame (cls first), C channels, (H,W) the patch grid.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from liteframe_kernels import strided_conv, temporal_conv
from torch import Tensor, nn
from typing_extensions import override


class BlockShape(Protocol):
    """What a mixer reads of a LiteFrameConfig."""

    dim: int
    heads: int
    temporal_kernel: int
    layer_norm_eps: float


class Kept(NamedTuple):
    """Indices into a larger network's parameters that a smaller student takes.

    Attributes:
        residual: [C], channels of the residual stream.
        heads: [C], channels of the kept heads, head after head: rows of q, k or v alone, columns of the projection.
        qkv: [3C], rows of a joint layer for q, k and v.
        hidden: [mlp_dim], channels inside the MLP.
    """

    residual: Tensor
    heads: Tensor
    qkv: Tensor
    hidden: Tensor


class Mixer(nn.Module, ABC):
    """A block's way to mix frames, made from the shape of the block."""

    def __init__(self, shape: BlockShape):
        super().__init__()

    def attend(self, attention: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The block's own attention over [B,T,N,C], here each frame by itself; `attention` takes sets [M,N,C]."""
        return attention(x.flatten(0, 1)).unflatten(0, x.shape[:2])  # [B*T,N,C] -> [B,T,N,C]

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """[B,T,N,C] -> [B,T,N,C], its own residual included."""

    @staticmethod
    @abstractmethod
    def params(shape: BlockShape) -> int:
        """Parameters of the mixer of one block."""

    @staticmethod
    @abstractmethod
    def flops(shape: BlockShape, frames: int, tokens: int) -> int:
        """FLOPs of its linear and convolution layers in one block, for one clip of `frames` x `tokens` tokens."""

    @staticmethod
    def attention_flops(shape: BlockShape, frames: int, tokens: int) -> int:
        """FLOPs of all products QK and AV in one block, those of its own attention (see attend) included."""
        return frame_attention_flops(shape.dim, frames, tokens)

    @staticmethod
    @abstractmethod
    def axes(kept: Kept) -> dict[str, tuple[Tensor, ...]]:
        """Of each of its parameters, by name, the indices along each axis that a smaller student takes."""

    @staticmethod
    @abstractmethod
    def describe(shape: BlockShape) -> str:
        """For people: the mixer with its settings."""


def frame_attention_flops(dim: int, frames: int, tokens: int) -> int:
    """FLOPs of the products QK and AV of attention within frames."""
    return 4 * frames * tokens * tokens * dim


class NoMixer(Mixer):
    """Frames meet in the strided convolutions only."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x

    @staticmethod
    @override
    def params(shape: BlockShape) -> int:
        return 0

    @staticmethod
    @override
    def flops(shape: BlockShape, frames: int, tokens: int) -> int:
        return 0

    @staticmethod
    @override
    def axes(kept: Kept) -> dict[str, tuple[Tensor, ...]]:
        return {}

    @staticmethod
    @override
    def describe(shape: BlockShape) -> str:
        return "none"


class TemporalConv(Mixer):
    """Residual depthwise convolution along T, the same at every token: `x + conv(x)` (LiteFrame, arXiv 2605.17260).

    Weight and bias start at zero, so an untrained layer is the identity. A single frame has no neighbours and passes
    unchanged.
    """

    def __init__(self, shape: BlockShape):
        super().__init__(shape)
        self.weight = nn.Parameter(torch.zeros(shape.dim, shape.temporal_kernel))
        self.bias = nn.Parameter(torch.zeros(shape.dim))

    @override
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == 1:
            # In training every parameter takes part, if only with a zero gradient: distributed training counts them.
            return x + 0 * (self.weight.sum() + self.bias.sum()).to(x.dtype) if self.training else x
        return temporal_conv(x, self.weight, self.bias, residual=True)

    @staticmethod
    @override
    def params(shape: BlockShape) -> int:
        return shape.dim * shape.temporal_kernel + shape.dim

    @staticmethod
    @override
    def flops(shape: BlockShape, frames: int, tokens: int) -> int:
        return 2 * frames * tokens * shape.temporal_kernel * shape.dim if frames > 1 else 0

    @staticmethod
    @override
    def axes(kept: Kept) -> dict[str, tuple[Tensor, ...]]:
        return {"weight": (kept.residual,), "bias": (kept.residual,)}

    @staticmethod
    @override
    def describe(shape: BlockShape) -> str:
        return f"conv, kernel {shape.temporal_kernel}"


# Values of LiteFrameConfig.temporal_mixer.
MIXERS: dict[str, type[Mixer]] = {"conv": TemporalConv, "none": NoMixer}


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
        patches = x[:, :, 1:].unflatten(2, grid)  # [B,T,H,W,C]
        patches, cls = strided_conv(patches, self.weight, self.bias, cls=x[:, :, 0])  # [B,T/t,H/h,W/w,C], [B,T/t,C]
        tokens = torch.cat([cls.unsqueeze(2), patches.flatten(2, 3)], dim=2)  # [B,T/t,1+H/h*W/w,C]
        return tokens, (patches.shape[2], patches.shape[3])

    @staticmethod
    def axes(kept: Kept) -> dict[str, tuple[Tensor, ...]]:
        """Which part of its parameters a smaller student takes: the kept residual channels of both, as `Mixer.axes`."""
        return {"weight": (kept.residual,), "bias": (kept.residual,)}
