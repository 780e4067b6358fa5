"""A Q-Former that reads a video slot by slot behind what it has kept of it (MA-LMM, arXiv 2404.05726).

Its queries attend to what they were at earlier slots, and to the tokens of earlier slots: two banks, which the caller
keeps. No question takes part, so that one stream answers many.

Shapes: T slots or entries, B videos, N tokens of a slot, q queries, C channels of the language model, W of the queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

MEMORY = "qformer"  # name of the memory that reads with it
HEAD = 32  # channels of an attention head
PERIOD = 10_000  # of the slowest wave of a time, in seconds and divided by 2 pi


@dataclass
class QFormerSettings:
    """How a Q-Former learns to sum up a video in the answers' loss.

    Attributes:
        queries: that are learned; so many tokens stand for a video, however long it is.
        layers: each with self-attention, cross-attention and a feed-forward network.
        width: of the queries, a multiple of 32.
        lengths: of the banks, in slots, one of which each video draws.
        train_lora: train the LoRA layers of the language model, too.
    """

    queries: int = 32
    layers: int = 2
    width: int = 256
    lengths: list[int] = field(default_factory=lambda: [5, 10, 20])
    train_lora: bool = True

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        counts = min(self.queries, self.layers, *(self.lengths or [0])) >= 1
        if not (counts and self.width >= HEAD and self.width % HEAD == 0):
            raise ValueError(
                f"model.qformer: queries, layers and lengths of at least 1 and a width that is a multiple of {HEAD} "
                f"are needed, got {self}"
            )


class QFormerLayer(nn.Module):
    """Queries attend to themselves and to those of earlier slots, then to what is seen; norms come first.

    Args:
        width: W.
        source: C.
    """

    def __init__(self, width: int, source: int) -> None:
        super().__init__()
        heads = width // HEAD
        self.norm, self.cross_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross_attention = nn.MultiheadAttention(width, heads, kdim=source, vdim=source, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, queries: Tensor, earlier: Tensor, seen: Tensor) -> Tensor:
        """Queries [B,q,W], those of earlier slots [B,T*q,W], what is seen [B,T*N,C] -> [B,q,W]."""
        own = self.norm(queries)
        kept = torch.cat([self.norm(earlier), own], 1)
        queries = queries + self.attention(own, kept, kept, need_weights=False)[0]
        queries = queries + self.cross_attention(self.cross_norm(queries), seen, seen, need_weights=False)[0]
        return queries + self.mlp(queries)


class QFormer(nn.Module):
    """What a language model has for this memory; it belongs to `language_model.qformer`.

    Args:
        settings: of the training.
        channels: C.
        scale: standard deviation of the language model's embeddings, with which its tokens begin.
    """

    def __init__(self, settings: QFormerSettings, channels: int, scale: float) -> None:
        super().__init__()
        self.settings = settings
        self.queries = nn.Parameter(torch.randn(settings.queries, settings.width) * 0.02)
        self.norm = nn.LayerNorm(channels)
        self.layers = nn.ModuleList(QFormerLayer(settings.width, channels) for _ in range(settings.layers))
        self.out_norm, self.out = nn.LayerNorm(settings.width), nn.Linear(settings.width, channels)
        nn.init.normal_(self.out.weight, std=scale / settings.width**0.5)
        nn.init.zeros_(self.out.bias)

    def forward(self, seen: Tensor, seconds: Tensor, earlier: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Read a slot.

        Args:
            seen: [T,B,N,C], the tokens of earlier slots that are kept, and the slot's.
            seconds: [T,B,N], when each was.
            earlier: for each layer [T,B,q,W], what it was given at earlier slots; T may be 0.

        Returns:
            tokens [B,q,C] that the language model reads, and what each layer was given, [B,q,W].
        """
        dtype = self.queries.dtype
        wave = waves(seconds, seen.shape[-1]).to(dtype)
        source = (self.norm(seen.to(dtype)) + wave).transpose(0, 1).flatten(1, 2)  # [B,T*N,C]
        queries = self.queries.expand(len(source), -1, -1)  # [B,q,W]
        given = []
        for layer, kept in zip(self.layers, earlier, strict=True):
            given.append(queries)
            queries = layer(queries, kept.to(dtype).transpose(0, 1).flatten(1, 2), source)
        return self.out(self.out_norm(queries)).to(seen.dtype), given


def waves(seconds: Tensor, channels: int) -> Tensor:
    """Sines and cosines of times, [...] -> float32 [...,channels], channels even."""
    steps = torch.arange(0, channels, 2, device=seconds.device) / channels
    angles = seconds.float()[..., None] * PERIOD**-steps  # [...,channels/2]
    return torch.cat([angles.sin(), angles.cos()], -1)


def add_qformer(model: Any, processor: Any, settings: QFormerSettings) -> QFormer:
    """Give the language model of a Video LLM a Q-Former, on its device.

    Raises:
        ValueError: it has no LiteFrame encoder, or positions on three axes.
    """
    kind = model.config.model_type
    counts = getattr(model.model, "counts_itself", None)
    if counts is None:
        raise ValueError(f"a Q-Former reads the tokens of a LiteFrame encoder, which this {kind} has not")
    if not counts:
        raise ValueError(f"a Q-Former's tokens have no place in a grid, and positions of a {kind} have three axes")
    embeddings = model.get_input_embeddings().weight
    scale = float(embeddings.detach().float().std())
    former = QFormer(settings, embeddings.shape[1], scale).to(embeddings.device)
    model.model.language_model.qformer = former
    return former
