"""Distillation by reconstruction (RTD of arXiv 2605.17260): a decoder makes the teacher's dense features of tokens.

It is thrown away after training.
The paper does not describe its decoder; the ladder of three is ours. What the language model reads are the tokens, not
what is decoded, so the freer a decoder is, the further tokens may leave the teacher's space.

Shapes: B clips, T frames in T' slots of t, (h,w) token grid in (h*kh,w*kw) patches, C teacher channels.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from liteframe.distill.losses import LossName
from liteframe.distill.objectives.ctd import CompressedTokens
from liteframe.distill.targets import TargetSettings
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.encoder import Block, summed
from liteframe.reduce.base import Window

Decoder = Literal["repeat", "linear", "transformer"]
LAYERS, HEAD = 4, 64  # blocks of the transformer, channels of a head


class Repeat(nn.Module):
    """Each token at all places of its window: then RTD is CTD on plain means, up to a constant."""

    def __init__(self, channels: int, window: Window):
        super().__init__()
        self.window = window

    def forward(self, tokens: Tensor) -> Tensor:
        """[B,T',h,w,C] -> [B,T'*t,h*kh,w*kw,C]."""
        for axis, times in enumerate(self.window, start=1):
            tokens = tokens.repeat_interleave(times, axis)
        return tokens


class Unfold(nn.Module):
    """A linear layer from a token to all members of its window."""

    def __init__(self, channels: int, window: Window):
        super().__init__()
        self.window = window
        self.layer = nn.Linear(channels, math.prod(window) * channels)
        start_at_random(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B,T',h,w,C] -> [B,T'*t,h*kh,w*kw,C]."""
        return spread(self.layer(tokens).unflatten(-1, (*self.window, -1)))


class Transformer(nn.Module):
    """Four pre-norm blocks of half of the teacher's width with attention within a frame, on copies of each token that
    differ by a learned vector a place.
    """

    def __init__(self, channels: int, window: Window):
        super().__init__()
        self.window, width = window, channels // 2
        shape = LiteFrameConfig(dim=width, heads=max(1, width // HEAD), temporal_mixer="none")
        self.enter = nn.Linear(channels, width)
        self.places = nn.Parameter(torch.empty(*window, width))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(LAYERS))
        for block in self.blocks:
            block.ls1 = block.ls2 = None  # type: ignore[assignment]
        self.norm = nn.LayerNorm(width, eps=shape.layer_norm_eps)
        self.leave = nn.Linear(width, channels)
        start_at_random(self)
        nn.init.trunc_normal_(self.places, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B,T',h,w,C] -> [B,T'*t,h*kh,w*kw,C]."""
        members = self.enter(tokens)[:, :, :, :, None, None, None] + self.places  # [B,T',h,w,t,kh,kw,C/2]
        x = spread(members)  # [B,T,h*kh,w*kw,C/2]
        grid, x = x.shape[2:4], x.flatten(2, 3)
        for block in self.blocks:
            x = block(x)
        return self.leave(self.norm(summed(x))).unflatten(2, grid)


def spread(members: Tensor) -> Tensor:
    """Members of windows, [B,T',h,w,t,kh,kw,C], at their places: [B,T'*t,h*kh,w*kw,C]."""
    return members.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(5, 6).flatten(3, 4).flatten(1, 2)


def start_at_random(decoder: nn.Module) -> None:
    """Linear layers as a student's."""
    for module in decoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)


DECODERS: dict[Decoder, type[nn.Module]] = {"repeat": Repeat, "linear": Unfold, "transformer": Transformer}


class ReconstructedFeatures(CompressedTokens):
    """The objective of RTD: the loss of CTD between decoded tokens and all patches of the teacher.

    Args:
        channels: C.
        settings: how targets are clipped and standardized, by statistics of the dense features.
        loss_name: between a patch and its target.
        window: (t,kh,kw) of a token.
        decoder: which.
    """

    def __init__(
        self,
        channels: int,
        settings: TargetSettings,
        loss_name: LossName,
        window: Window = (4, 2, 2),
        decoder: Decoder = "transformer",
    ):
        super().__init__(channels, settings, loss_name, window)
        self.pooling = (1, 1, 1)
        self.decoder = DECODERS[decoder](channels, window)

    @override
    def modules(self) -> dict[str, nn.Module]:
        return {**super().modules(), "decoder": self.decoder}

    @override
    def decoded(self, tokens: Tensor) -> Tensor:
        return self.decoder(tokens)
