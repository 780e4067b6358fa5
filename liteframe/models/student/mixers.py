"""What mixes frames: the table of temporal mixers, and the strided (compressing) convolution.

A new mixer is a class here or in a file beside this one, a line in MIXERS, and one in the exporter's table of traceable
forms.

Shapes: B videos, T frames, N tokens a frame (cls first), C channels, (H,W) the patch grid.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from liteframe_kernels import residual_norm, strided_conv, temporal_conv
from torch import Tensor, nn
from typing_extensions import override

from liteframe.models.student.attention_mixers import SpaceTime, TemporalAttention, TemporalBlock
from liteframe.models.student.mixer import BlockShape, Kept, Mixer, NoMixer, ResidualMixer
from liteframe.models.student.strides import Stride


class TemporalConv(Mixer):
    """Residual depthwise convolution along T, the same at every token: `x + conv(x)` (LiteFrame, arXiv 2605.17260).

    Weight and bias start at zero, so an untrained layer is the identity. A single frame has no neighbors and passes
    unchanged.
    """

    has_kernel: ClassVar[bool] = True

    def __init__(self, shape: BlockShape):
        super().__init__(shape)
        self.weight = nn.Parameter(torch.zeros(shape.dim, shape.temporal_kernel))
        self.bias = nn.Parameter(torch.zeros(shape.dim))

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.unmixed(x) if x.shape[1] == 1 else temporal_conv(x, self.weight, self.bias, residual=True)

    @override
    def still(self, x: Tensor) -> Tensor:
        return temporal_conv(x, self._sum_of_taps(), self.bias, residual=True)

    @override
    def join(
        self, x: Tensor, branch: Tensor, scale: Tensor | None, norm: nn.LayerNorm, still: bool = False
    ) -> tuple[Tensor, Tensor]:
        if x.shape[1] == 1 and not still:
            return super().join(x, branch, scale, norm)
        weight = self._sum_of_taps() if still else self.weight
        return residual_norm(
            x, branch, norm.weight, norm.bias, eps=norm.eps, scale=scale, conv_weight=weight, conv_bias=self.bias
        )

    def _sum_of_taps(self) -> Tensor:
        """[C,1], all that a frame gets of frames like it; not rounded to 16 bits."""
        return self.weight.sum(1, keepdim=True, dtype=torch.promote_types(self.weight.dtype, torch.float32))

    @staticmethod
    @override
    def params(shape: BlockShape) -> int:
        return shape.dim * shape.temporal_kernel + shape.dim

    @staticmethod
    @override
    def flops(shape: BlockShape, frames: int, tokens: int) -> int:
        return 2 * frames * tokens * (shape.temporal_kernel if frames > 1 else 1) * shape.dim

    @staticmethod
    @override
    def axes(kept: Kept) -> dict[str, tuple[Tensor, ...]]:
        return {"weight": (kept.residual,), "bias": (kept.residual,)}

    @staticmethod
    @override
    def describe(shape: BlockShape) -> str:
        return f"conv, kernel {shape.temporal_kernel}"


class DenseConv(ResidualMixer):
    """Residual convolution along T over all channels, `x + conv(x)`, that starts at zero: the paper's TempConv.

    What the paper prints for it is 1.1 % more parameters and 0.5 % more FLOPs, which nothing public explains.
    """

    has_kernel: ClassVar[bool] = True

    def __init__(self, shape: BlockShape):
        super().__init__(shape)
        self.weight = nn.Parameter(torch.zeros(shape.dim, shape.dim, shape.temporal_kernel))
        self.bias = nn.Parameter(torch.zeros(shape.dim))

    @override
    def added(self, x: Tensor) -> Tensor:
        grid = x.movedim(3, 1)  # [B,C,T,N], channels last as they lie
        mixed = F.conv2d(grid, self.weight[..., None], self.bias, padding=(self.weight.shape[-1] // 2, 0))
        return mixed.movedim(1, 3)

    @override
    def still(self, x: Tensor) -> Tensor:
        return x + F.linear(x, self.weight.sum(2), self.bias)

    @staticmethod
    @override
    def params(shape: BlockShape) -> int:
        return shape.dim**2 * shape.temporal_kernel + shape.dim

    @staticmethod
    @override
    def flops(shape: BlockShape, frames: int, tokens: int) -> int:
        return 2 * frames * tokens * (shape.temporal_kernel if frames > 1 else 1) * shape.dim**2

    @staticmethod
    @override
    def axes(kept: Kept) -> dict[str, tuple[Tensor, ...]]:
        return {"weight": (kept.residual, kept.residual), "bias": (kept.residual,)}

    @staticmethod
    @override
    def describe(shape: BlockShape) -> str:
        return f"dense conv, kernel {shape.temporal_kernel}"


# Values of LiteFrameConfig.temporal_mixer.
MIXERS: dict[str, type[Mixer]] = {
    "conv": TemporalConv,
    "none": NoMixer,
    "attn": TemporalAttention,
    "attn_block": TemporalBlock,
    "dense": DenseConv,
    "spacetime": SpaceTime,
}


class StridedConv(nn.Module):
    """Depthwise convolution with kernel = stride = (t,h,w) that shortens the token grid; starts as the mean.

    The cls token is one per frame and constant over space: it sees the kernel summed over the spatial taps.
    In an elastic encoder the kernel is the largest of all modes, and a mode with a smaller stride has its block sums.
    """

    def __init__(self, dim: int, stride: Stride):
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim, *stride), 1.0 / math.prod(stride)))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, grid: tuple[int, int], stride: Stride) -> tuple[Tensor, tuple[int, int]]:
        """[B,T,1+H*W,C] on grid (H,W) -> [B,T/t,1+H/h*W/w,C] and the new grid; t, h, w must divide T, H, W."""
        patches = x[:, :, 1:].unflatten(2, grid)  # [B,T,H,W,C]
        weight = self.weight if self.weight.shape[1:] == stride else block_sums(self.weight, stride)
        patches, cls = strided_conv(patches, weight, self.bias, cls=x[:, :, 0])  # [B,T/t,H/h,W/w,C], [B,T/t,C]
        tokens = torch.cat([cls.unsqueeze(2), patches.flatten(2, 3)], dim=2)  # [B,T/t,1+H/h*W/w,C]
        return tokens, (patches.shape[2], patches.shape[3])

    @staticmethod
    def axes(kept: Kept) -> dict[str, tuple[Tensor, ...]]:
        """Which part of its parameters a smaller student takes: the kept residual channels of both, as `Mixer.axes`."""
        return {"weight": (kept.residual,), "bias": (kept.residual,)}


def block_sums(kernel: Tensor, stride: Stride) -> Tensor:
    """The kernel of a smaller stride out of a larger one, [C,T,H,W] -> [C,t,h,w]: a tap is the sum of those it covers.

    On an input that is constant where a tap of the larger stride reaches, both convolve alike, and means stay means.
    In float64, so that equal parts of a number add up to exactly that number.
    """
    t, h, w = stride
    blocks = kernel.double().unflatten(3, (w, -1)).unflatten(2, (h, -1)).unflatten(1, (t, -1))  # [C,t,.,h,.,w,.]
    return blocks.sum((2, 4, 6)).to(kernel.dtype)
