"""UniComp: what is unique in a video, in frames, shares and tokens (arXiv 2512.03575; reducers_ablations.md 3.12).

Shapes: F frames, G groups of frames, n tokens of each, C channels.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from liteframe.reduce.base import Signals, Tokens
from liteframe.reduce.reducer import Reducer
from liteframe.reduce.selection import bottom, unit


@dataclass(frozen=True)
class UniComp(Reducer):
    """Frames that are alike become one; of each such group, tokens unlike each other, blended with those like them.

    For towers without keys its authors take the features, and for want of a global vector the mean token:
    `replace(signals, keys=signals.tokens, glob=signals.tokens.mean(1))`.

    Args:
        frame_threshold: 1 - cosine of the mean tokens up to which a frame joins the first one of a group.
        token_threshold: 1 - cosine of keys below which tokens count as alike.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"keys", "glob"})
    frame_threshold: float = 0.005
    token_threshold: float = 0.2

    @override
    def reduce(self, signals: Signals, budget: int) -> Tokens:
        """At most as many tokens as the budget says, with a line of the prompt for each group.

        Raises:
            ValueError: the budget is too small for the share of any group to be a token.
        """
        assert signals.keys is not None
        assert signals.glob is not None
        x, n, device = signals.tokens, signals.tokens.shape[1], signals.tokens.device
        groups = alike(x.mean(1), self.frame_threshold, 1 + signals.count // budget)
        first = torch.tensor([group.start for group in groups], device=device)  # [G]
        means = torch.stack([x[group.start : group.stop].mean(0) for group in groups])  # [G,n,C]
        if len(groups) * n <= budget:
            near = torch.eye(n, dtype=torch.bool, device=device).expand(len(groups), n, n)
            chosen = [torch.arange(n, device=device)] * len(groups)
        else:
            direction = unit(signals.keys[first])
            similarity = direction @ direction.mT  # [G,n,n]
            near = (1 - similarity < self.token_threshold) | torch.eye(n, dtype=torch.bool, device=device)
            picked = unlike(similarity, near)
            counts = pass_on(shares(signals.glob[first], budget, n), [len(places) for places in picked])
            chosen = [places[:count].sort().values for places, count in zip(picked, counts, strict=True)]
        tokens, sizes = [], []
        for number, (group, places) in enumerate(zip(groups, chosen, strict=True)):
            members = near[number, places].to(x)  # [k,n]
            total = members.sum(1)
            tokens.append((means[number, places] + members @ means[number] / total[:, None]) / 2)
            sizes.append(total * len(group))
        kept = torch.tensor([len(places) for places in chosen], device=device)
        if not kept.any():
            raise ValueError(f"a budget of {budget} tokens leaves none for any of {len(groups)} groups of frames")
        lines = zip(groups, kept.tolist(), strict=True)
        return Tokens(
            torch.cat(tokens),
            first.repeat_interleave(kept),
            torch.cat(chosen),
            torch.cat(sizes).float(),
            [(group.start, group.stop - 1, count) for group, count in lines if count],
        )


def alike(means: Tensor, threshold: float, most: int) -> list[range]:
    """Groups of neighboring frames, at most `most` each, whose means [F,C] are near that of the group's first frame."""
    direction = unit(means)
    starts = [0]
    distance = (1 - direction @ direction.T).tolist()
    for frame in range(1, len(means)):
        if distance[starts[-1]][frame] > threshold or frame - starts[-1] == most:
            starts.append(frame)
    return [range(begin, end) for begin, end in zip(starts, [*starts[1:], len(means)], strict=True)]


def shares(glob: Tensor, budget: int, n: int) -> list[int]:
    """Tokens for each group [G,C]: more for those unlike the others, none above n or twice an equal share."""
    count = len(glob)
    direction = unit(glob.double())
    likeness = (direction @ direction.T).mean(1)  # [G]
    most = min(n, max(1, 2 * (budget // count)))
    if count <= budget // most:
        return [most] * count
    parts = ((likeness.mean() - likeness) * math.sqrt(count)).softmax(0) * budget
    given = [min(most, int(part + 1e-9)) for part in parts.tolist()]  # 7 of 49 may be 6.999999999999999
    # What the limit has cut off goes to the others in equal parts, as long as it is one for each of them.
    while 0 < (below := sum(share < most for share in given)) < count and (more := (budget - sum(given)) // below) > 0:
        given = [min(most, share + more) for share in given]
    return given


def unlike(similarity: Tensor, near: Tensor) -> list[Tensor]:
    """Tokens of each group, most unusual first, none near an earlier one.

    Args:
        similarity: [G,n,n].
        near: bool [G,n,n].

    Returns:
        int64 [k], for each group.
    """
    order = bottom(similarity.mean(2), similarity.shape[2])  # [G,n]
    group = torch.arange(len(order), device=order.device)
    free, picked = torch.ones_like(order, dtype=torch.bool), torch.zeros_like(order, dtype=torch.bool)
    for rank, place in enumerate(order.unbind(1)):
        picked[:, rank] = free[group, place]
        free &= ~(near[group, place] & picked[:, rank, None])
    return [places[chosen] for places, chosen in zip(order, picked, strict=True)]


def pass_on(given: list[int], picks: list[int]) -> list[int]:
    """Let groups with fewer picks than their share leave the rest to the others, in equal parts rounded down."""
    if sum(picks) <= sum(given):
        return given
    left = sum(max(0, share - picked) for share, picked in zip(given, picks, strict=True))
    others = sum(picked >= share for share, picked in zip(given, picks, strict=True))
    return [share + left // others if picked >= share else picked for share, picked in zip(given, picks, strict=True)]
