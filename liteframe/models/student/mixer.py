"""What a temporal mixer is; the table of them is in mixers.py.

A mixer stands between a block's attention and its MLP. It owns how its parameters start, what it costs, which part of a
larger student's parameters a smaller one takes, and how far the block's own attention reaches.

Shapes: B videos, T frames, N tokens a frame (cls first), C channels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol

import torch
from liteframe_kernels import residual_norm
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
    """A block's way to mix frames, made from the shape of the block.

    Attributes:
        has_kernel: whether it is a convolution of `temporal_kernel` taps.
    """

    has_kernel: ClassVar[bool] = False

    def __init__(self, shape: BlockShape):
        super().__init__()

    def start(self) -> None:
        """Set what must not start as a student's other linear layers do, which are random by then."""

    def attend(self, attention: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The block's own attention over [B,T,N,C], here each frame by itself; `attention` takes sets [M,N,C]."""
        return attention(x.flatten(0, 1)).unflatten(0, x.shape[:2])  # [B*T,N,C] -> [B,T,N,C]

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """[B,T,N,C] -> [B,T,N,C], its own residual included."""

    @abstractmethod
    def still(self, x: Tensor) -> Tensor:
        """[B,1,N,C] -> [B,1,N,C]: what `forward` makes of a frame with endless frames like it on both sides."""

    def join(
        self, x: Tensor, branch: Tensor, scale: Tensor | None, norm: nn.LayerNorm, still: bool = False
    ) -> tuple[Tensor, Tensor]:
        """What a block does between attention and MLP: adds `scale * branch`, mixes, and normalizes.

        Args:
            x: the residual stream [B,T,N,C].
            branch: what attention gave, [B,T,N,C].
            scale: LayerScale [C], None for 1.
            norm: the norm before the MLP.
            still: whether the frame stands for endless ones like it; T is 1 then.

        Returns:
            The stream mixed, and it normalized, each [B,T,N,C].
        """
        x = x + (branch if scale is None else scale * branch)
        x = self.still(x) if still else self(x)
        return x, norm(x)

    def unmixed(self, x: Tensor) -> Tensor:
        """A single frame, unchanged; in training each parameter takes part by a zero, since DDP counts them."""
        return x + 0 * torch.stack([p.sum() for p in self.parameters()]).sum().to(x.dtype) if self.training else x

    @staticmethod
    @abstractmethod
    def params(shape: BlockShape) -> int:
        """Parameters of the mixer of one block."""

    @staticmethod
    @abstractmethod
    def flops(shape: BlockShape, frames: int, tokens: int) -> int:
        """FLOPs of its linear and convolution layers in one block, for one clip of `frames` x `tokens` tokens.

        One frame is that of a still image: else a single one passes unchanged and costs nothing.
        """

    @staticmethod
    def attention_flops(shape: BlockShape, frames: int, tokens: int) -> int:
        """FLOPs of all products QK and AV in one block, those of its own attention (see attend) included; as flops."""
        return frame_attention_flops(shape.dim, frames, tokens)

    @staticmethod
    @abstractmethod
    def axes(kept: Kept) -> dict[str, tuple[Tensor, ...]]:
        """Of each of its parameters, by name, the indices along each axis that a smaller student takes."""

    @staticmethod
    @abstractmethod
    def describe(shape: BlockShape) -> str:
        """For people: the mixer with its settings."""


class ResidualMixer(Mixer):
    """A mixer that adds something to its input, and nothing where a single frame has no neighbors."""

    @abstractmethod
    def added(self, x: Tensor) -> Tensor:
        """[B,T,N,C], T > 1 -> what is added to it."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.unmixed(x) if x.shape[1] == 1 else x + self.added(x)


def frame_attention_flops(dim: int, frames: int, tokens: int) -> int:
    """FLOPs of the products QK and AV of attention within frames."""
    return 4 * frames * tokens * tokens * dim


class NoMixer(Mixer):
    """Frames meet in the strided convolutions only."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x

    @override
    def still(self, x: Tensor) -> Tensor:
        return x

    @override
    def join(
        self, x: Tensor, branch: Tensor, scale: Tensor | None, norm: nn.LayerNorm, still: bool = False
    ) -> tuple[Tensor, Tensor]:
        return residual_norm(x, branch, norm.weight, norm.bias, eps=norm.eps, scale=scale)

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
