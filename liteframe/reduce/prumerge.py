"""PruMerge and PruMerge+: salient tokens gather what resembles them (arXiv 2403.15388; reducers_ablations.md 3.3).

Shapes: F frames, n tokens a frame, K kept tokens of one, C channels of a token, D of a key.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from liteframe.reduce.base import Signals, Tokens
from liteframe.reduce.reducer import Reducer
from liteframe.reduce.selection import top, unit


@dataclass(frozen=True)
class PruMerge(Reducer):
    """Of each frame the most salient tokens with what resembles them, by falling saliency; last, the sum of the rest.

    Args:
        plus: PruMerge+, where half of the tokens come from a regular grid over the frame and stand behind the others.
        adaptive: the authors' own count, the outliers of the frame's saliency but at least one, and with `plus` a grid
            about three times as dense; the budget is then only a bound.
        neighbors: R, how many tokens each kept one gathers.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"saliency", "keys"})
    space: ClassVar[str] = "shuffled"
    exact: ClassVar[bool] = True
    plus: bool = False
    adaptive: bool = False
    neighbors: int = 32

    @override
    def reduce(self, signals: Signals, budget: int) -> Tokens:
        """floor(budget / F) tokens a frame, two at least.

        Raises:
            ValueError: the budget is less than that, or less than `adaptive` keeps.
        """
        frames, n, _ = signals.tokens.shape
        if budget < 2 * frames:
            raise ValueError(
                "PruMerge makes a kept token and the sum of the rest of each frame; "
                f"a budget of {budget} tokens is less than two for each of {frames} frames"
            )
        assert signals.saliency is not None
        assert signals.keys is not None
        parts = []
        for frame, saliency in enumerate(signals.saliency):
            kept = torch.tensor(self._kept(saliency, budget // frames - 1), device=saliency.device)
            place = torch.cat([kept, kept.new_full((1,), -1)])
            size = torch.full_like(place, 1 + min(self.neighbors, n - 1))
            size[-1] = n - len(kept)
            tokens = merge(signals.tokens[frame], saliency, signals.keys[frame], kept, self.neighbors)
            parts.append((tokens, torch.full_like(place, frame), place, size))
        reduced = Tokens.by_frame(*(torch.cat(part) for part in zip(*parts, strict=True)))
        if len(reduced.tokens) > budget:
            raise ValueError(f"{len(reduced.tokens)} tokens stand out, more than the budget of {budget}")
        return reduced

    def _kept(self, saliency: Tensor, count: int) -> list[int]:
        """The tokens of a frame that gather others, in their order; `count` of them, unless adaptive."""
        n = len(saliency)
        salient = outliers(saliency) if self.adaptive else -(-count // 2) if self.plus else count
        kept = top(saliency, max(1, salient)).tolist()
        if not self.plus:
            return kept
        if self.adaptive:
            step = max(1, n // len(kept) // 3)
            return kept + [place for place in range(0, n - 1, step) if place not in kept]
        grid = count - len(kept)
        return kept + next_free([(2 * j + 1) * n // (2 * grid) for j in range(grid)], kept, n)


def merge(x: Tensor, saliency: Tensor, keys: Tensor, kept: Tensor, neighbors: int) -> Tensor:
    """Add to each kept token the `neighbors` others of the most similar keys, weighted by their saliency.

    Args:
        x: [n,C], the tokens of a frame.
        saliency: [n], not normalized: the kept token's own weight is 1.
        keys: [n,D].
        kept: int64 [K].
        neighbors: R, at most n - 1; kept ones count too.

    Returns:
        [K+1,C]; the last one is the sum of all tokens that are not kept, weighted likewise.
    """
    direction = unit(keys)
    similarity = (direction[kept] @ direction.T).scatter(1, kept[:, None], -torch.inf)  # [K,n]
    near = top(similarity, min(neighbors, len(x) - 1))  # [K,R]
    weights = torch.zeros_like(similarity).scatter(1, near, saliency[near]).scatter(1, kept[:, None], 1)
    rest = saliency.index_fill(0, kept, 0)  # [n]
    return torch.cat([weights, rest[None]]) @ x


def outliers(saliency: Tensor) -> int:
    """How many of [n] lie more than one and a half interquartile ranges above the third quartile."""
    low, high = saliency.quantile(saliency.new_tensor([0.25, 0.75]))
    return int((saliency > high + 1.5 * (high - low)).sum())


def next_free(places: Iterable[int], taken: Iterable[int], n: int) -> list[int]:
    """The places, or where one is taken the next that is free, around the end of n if need be; in rising order."""
    free, found = set(range(n)) - set(taken), []
    for place in places:
        while place not in free:
            place = (place + 1) % n
        free.remove(place)
        found.append(place)
    return sorted(found)
