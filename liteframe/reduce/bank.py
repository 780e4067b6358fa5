"""Memory bank compression (MA-LMM, arXiv 2404.05726): in a bank that is full, two neighbors in time become one.

Shapes: T entries, N tokens of each, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from liteframe.reduce.selection import first_largest


@dataclass(frozen=True)
class Bank:
    """Entries of a bank; each place of N is a bank of its own, as far as the choice is not one for all.

    Attributes:
        tokens: [T,N,C].
        sizes: float32 [T,N], slots that became each.
        spans: [T,N,K], K/2 pairs of a start and an end that are kept of each, such as frames and seconds.
    """

    tokens: Tensor
    sizes: Tensor
    spans: Tensor

    @classmethod
    def of(cls, tokens: Tensor, *spans: float) -> Bank:
        """One entry of tokens [N,C], all of one span."""
        kept = torch.tensor(spans, dtype=torch.float64, device=tokens.device).repeat(len(tokens), 1)  # [N,K]
        return cls(tokens[None], torch.ones(1, len(tokens), device=tokens.device), kept[None])

    def joined(self, other: Bank) -> Bank:
        """The entries of both, one behind the other."""
        pairs = ((self.tokens, other.tokens), (self.sizes, other.sizes), (self.spans, other.spans))
        return Bank(*(torch.cat(pair) for pair in pairs))

    def at_most(self, length: int, together: bool = False) -> Bank:
        """Itself, or where it has more than `length` entries, with two of them merged; see merge_most_alike."""
        if len(self.tokens) <= length:
            return self
        tokens, sizes, choice = merge_most_alike(self.tokens, self.sizes, together)
        place = torch.arange(len(choice), device=choice.device)
        spans = self.spans.clone()
        spans[choice, place, 1::2] = self.spans[choice + 1, place, 1::2]  # from the one's start to the other's end
        return Bank(tokens, sizes, drop_row(spans, choice + 1))


def merge_most_alike(values: Tensor, sizes: Tensor, together: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Make one of two neighbors, their mean weighted by sizes.

    Args:
        values: [T,N,C], T >= 2.
        sizes: float32 [T,N], how many became each.
        together: one choice for all N, by the mean of their cosines; else one for each. The first of equals is taken.

    Returns:
        values [T-1,N,C], sizes [T-1,N] and the choice, int64 [N]: entries `choice` and `choice + 1` are one now.
    """
    exact = values.float()
    alike = F.cosine_similarity(exact[:-1], exact[1:], dim=-1)  # [T-1,N]
    if together:
        alike = alike.mean(1, keepdim=True).expand_as(alike)
    choice = first_largest(alike.T)  # [N]
    place = torch.arange(values.shape[1], device=values.device)
    size = sizes[choice, place] + sizes[choice + 1, place]  # [N]
    weighted = exact * sizes[..., None]
    mean = (weighted[choice, place] + weighted[choice + 1, place]) / size[:, None]  # [N,C]
    values, sizes = drop_row(values, choice + 1), drop_row(sizes, choice + 1)
    values[choice, place], sizes[choice, place] = mean.to(values.dtype), size
    return values, sizes, choice


def drop_row(values: Tensor, row: Tensor) -> Tensor:
    """Without one entry of each position: [T,N,...] and int64 [N] -> [T-1,N,...], a copy."""
    stays = torch.arange(len(values), device=values.device)[:, None] != row  # [T,N]
    order = stays.T.nonzero()[:, 1].view(len(row), -1).T  # [T-1,N]
    return values[order, torch.arange(len(row), device=values.device)]
