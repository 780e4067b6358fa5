"""VisionZip (arXiv 2412.04467; reducers_ablations.md 3.5): the most salient tokens, and the rest added to a few.

Shapes: F frames, n tokens a frame, R of them not dominant, C channels.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from liteframe.reduce.base import Signals, Tokens
from liteframe.reduce.reducer import Reducer
from liteframe.reduce.selection import first_largest, top, unit


@dataclass(frozen=True)
class VisionZip(Reducer):
    """Each frame by itself: dominant tokens in raster order, then contextual ones, each with about twice the norm.

    Attributes:
        dominant: share of a frame's tokens that are dominant.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"saliency", "keys"})
    space: ClassVar[str] = "shuffled"
    exact: ClassVar[bool] = True
    dominant: float = 54 / 64

    @override
    def reduce(self, signals: Signals, budget: int) -> Tokens:
        """As many of each frame, budget // F."""
        assert signals.saliency is not None
        assert signals.keys is not None
        x, count = signals.tokens, signals.tokens_per_frame(budget)
        frames, _, channels = x.shape
        dominants = int(count * self.dominant)
        chosen = top(signals.saliency, dominants).sort(1).values  # [F,D]
        is_rest = torch.ones_like(signals.saliency, dtype=torch.bool).scatter(1, chosen, False)  # [F,n]
        rest = is_rest.nonzero()[:, 1].view(frames, -1)  # [F,R]
        contextual = min(count - dominants, rest.shape[1])
        targets = rest[:, :: max(1, rest.shape[1] // max(1, contextual))][:, :contextual]  # [F,M]
        is_other = is_rest.scatter(1, targets, False)

        keys = unit(signals.keys)  # [F,n,d]
        of_targets = keys.gather(1, targets[..., None].expand(-1, -1, keys.shape[2]))  # [F,M,d]
        label = first_largest(keys @ of_targets.mT) if contextual else torch.zeros_like(is_other, dtype=torch.int64)
        joins = (label[:, None] == torch.arange(contextual, device=x.device)[:, None]) & is_other[:, None]  # [F,M,n]
        joined = joins.sum(2)  # [F,M]
        means = joins.to(x) @ x / joined.clamp_min(1)[..., None]  # [F,M,C]

        place = torch.cat([chosen, targets], 1)  # [F,D+M]
        tokens = x.gather(1, place[..., None].expand(-1, -1, channels))
        tokens[:, dominants:] += means
        frame = torch.arange(frames, device=x.device).repeat_interleave(place.shape[1])
        size = torch.cat([torch.ones_like(chosen), 1 + joined], 1)
        return Tokens.by_frame(tokens.flatten(0, 1), frame, place.flatten(), size.flatten())
