"""Temporal mixers by attention: the paper's ablations of its convolution (arXiv 2605.17260, table of temporal modules).

The paper prints parameters and FLOPs of its attention variants and not their parts. `liteframe info` puts its digits
beside those of what is built here, which is our reading of them.

Shapes: B videos, T frames, N tokens a frame (cls first), C channels.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from typing_extensions import override

from liteframe.models.student.mixer import BlockShape, Kept, NoMixer, ResidualMixer, frame_attention_flops


class TemporalAttention(ResidualMixer):
    """Attention along T at each position, cls too: `x + ls * attn(norm(x))`, with LayerScale that starts at zero."""

    def __init__(self, shape: BlockShape):
        super().__init__(shape)
        from liteframe.models.student.encoder import Attention  # which takes its mixers from here

        self.norm = nn.LayerNorm(shape.dim, eps=shape.layer_norm_eps)
        self.attn = Attention(shape.dim, shape.heads)
        self.ls = nn.Parameter(torch.zeros(shape.dim))

    @override
    def added(self, x: Tensor) -> Tensor:
        return self.ls * along_time(self.attn, self.norm(x))

    @override
    def still(self, x: Tensor) -> Tensor:
        return x + self.added(x)  # attention to equal tokens is attention to one

    @staticmethod
    @override
    def params(shape: BlockShape) -> int:
        return 4 * shape.dim**2 + 7 * shape.dim

    @staticmethod
    @override
    def flops(shape: BlockShape, frames: int, tokens: int) -> int:
        return 8 * frames * tokens * shape.dim**2

    @staticmethod
    @override
    def attention_flops(shape: BlockShape, frames: int, tokens: int) -> int:
        return frame_attention_flops(shape.dim, frames, tokens) + 4 * tokens * frames**2 * shape.dim

    @staticmethod
    @override
    def axes(kept: Kept) -> dict[str, tuple[Tensor, ...]]:
        return {
            "norm.weight": (kept.residual,), "norm.bias": (kept.residual,), "ls": (kept.residual,),
            "attn.qkv.weight": (kept.qkv, kept.residual), "attn.qkv.bias": (kept.qkv,),
            "attn.proj.weight": (kept.residual, kept.heads), "attn.proj.bias": (kept.residual,),
        }  # fmt: skip

    @staticmethod
    @override
    def describe(shape: BlockShape) -> str:
        return f"attention along time, {shape.heads} heads"


class TemporalBlock(ResidualMixer):
    """A pre-norm block along T at each position: attention, then an MLP of twice the width; no LayerScale.

    The last layer of each starts at zero, so an untrained mixer is the identity.
    """

    def __init__(self, shape: BlockShape):
        super().__init__(shape)
        from liteframe.models.student.encoder import Attention, Mlp  # which take their mixers from here

        self.norm1 = nn.LayerNorm(shape.dim, eps=shape.layer_norm_eps)
        self.attn = Attention(shape.dim, shape.heads)
        self.norm2 = nn.LayerNorm(shape.dim, eps=shape.layer_norm_eps)
        self.mlp = Mlp(shape.dim, 2 * shape.dim)

    @override
    def start(self) -> None:
        for layer in (self.attn.proj, self.mlp.fc2):
            nn.init.zeros_(layer.weight)

    @override
    def added(self, x: Tensor) -> Tensor:
        mixed = along_time(self.attn, self.norm1(x))
        return mixed + self.mlp(self.norm2(x + mixed).flatten(0, 1)).unflatten(0, x.shape[:2])

    @override
    def still(self, x: Tensor) -> Tensor:
        return x + self.added(x)  # as of TemporalAttention

    @staticmethod
    @override
    def params(shape: BlockShape) -> int:
        return 8 * shape.dim**2 + 11 * shape.dim

    @staticmethod
    @override
    def flops(shape: BlockShape, frames: int, tokens: int) -> int:
        return 16 * frames * tokens * shape.dim**2

    @staticmethod
    @override
    def attention_flops(shape: BlockShape, frames: int, tokens: int) -> int:
        return TemporalAttention.attention_flops(shape, frames, tokens)

    @staticmethod
    @override
    def axes(kept: Kept) -> dict[str, tuple[Tensor, ...]]:
        hidden = (2 * kept.residual[:, None] + torch.arange(2)).flatten()  # [2C], two of each kept channel
        norms = {f"norm{n}.{part}": (kept.residual,) for n in (1, 2) for part in ("weight", "bias")}
        return norms | {
            "attn.qkv.weight": (kept.qkv, kept.residual), "attn.qkv.bias": (kept.qkv,),
            "attn.proj.weight": (kept.residual, kept.heads), "attn.proj.bias": (kept.residual,),
            "mlp.fc1.weight": (hidden, kept.residual), "mlp.fc1.bias": (hidden,),
            "mlp.fc2.weight": (kept.residual, hidden), "mlp.fc2.bias": (kept.residual,),
        }  # fmt: skip

    @staticmethod
    @override
    def describe(shape: BlockShape) -> str:
        return f"attention along time and an MLP of {2 * shape.dim}, {shape.heads} heads"


class SpaceTime(NoMixer):
    """No module of its own: the block's attention reaches over all tokens of a clip, each frame's cls among them."""

    @override
    def attend(self, attention: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return attention(x.flatten(1, 2)).unflatten(1, x.shape[1:3])  # [B,T*N,C] -> [B,T,N,C]

    @staticmethod
    @override
    def attention_flops(shape: BlockShape, frames: int, tokens: int) -> int:
        return frame_attention_flops(shape.dim, 1, frames * tokens)

    @staticmethod
    @override
    def describe(shape: BlockShape) -> str:
        return "none, the blocks' attention reaches over a clip"


def along_time(attention: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """[B,T,N,C] -> [B,T,N,C]: `attention` over the T tokens of each position."""
    sets = x.transpose(1, 2)  # [B,N,T,C]
    return attention(sets.flatten(0, 1)).unflatten(0, sets.shape[:2]).transpose(1, 2)
