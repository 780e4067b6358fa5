"""ToMe: pairs of similar tokens become one, round after round (ICLR 2023, arXiv 2210.09461; reducers_ablations.md 3.2).

Its authors merge a few tokens in each layer of a ViT. Here all of it happens behind the tower, where STTM's authors put
it for comparison. Shapes: F frames, n tokens a frame, N tokens of a window, C channels, D of what is compared.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from liteframe.reduce.base import Signals, Tokens
from liteframe.reduce.reducer import Reducer
from liteframe.reduce.selection import first_largest, top, unit


@dataclass(frozen=True)
class ToMe(Reducer):
    """Means of similar tokens of a window, in order of their first members, under whose frame and place they stand.

    Args:
        window: frames whose tokens may merge with each other; 0 for all, whose similarity is a matrix of (F*n)**2 / 4.
        metric: what similarity is measured on; "keys" need a tower that gives them, and are merged as the tokens are.
    """

    space: ClassVar[str] = "shuffled"
    exact: ClassVar[bool] = True
    window: int = 1
    metric: Literal["features", "keys"] = "features"

    def __post_init__(self) -> None:
        """Refuse windows and metrics that do not exist."""
        if self.window < 0 or self.metric not in ("features", "keys"):
            raise ValueError(
                "window is a number of frames, 0 for all, and metric features or keys; "
                f"got window={self.window}, metric={self.metric!r}"
            )

    @override
    def reduce(self, signals: Signals, budget: int) -> Tokens:
        """floor(budget / F) tokens a frame, or as many times more for a window of several frames."""
        count, n = signals.tokens_per_frame(budget), signals.tokens.shape[1]
        signals.require(*({"keys"} if self.metric == "keys" else ()))
        compared = signals.keys if self.metric == "keys" else None
        parts = []
        for frames in torch.arange(len(signals.tokens)).split(self.window or len(signals.tokens)):
            x = signals.tokens[frames].flatten(0, 1)  # [N,C]
            merged = merge(x, x if compared is None else compared[frames].flatten(0, 1), count * len(frames))
            order = merged.first.argsort()
            parts.append((merged.tokens[order], merged.first[order] + int(frames[0]) * n, merged.size[order]))
        tokens, first, size = (torch.cat(part) for part in zip(*parts, strict=True))
        return Tokens.by_frame(tokens, first // n, first % n, size)


class Merged(NamedTuple):
    """What is left of a window, in the order of the last round: untouched evens by falling similarity, then the odds.

    Attributes:
        tokens: [M,C], means of the members.
        size: [M], how many members.
        first: int64 [M], the smallest index of a member.
    """

    tokens: Tensor
    size: Tensor
    first: Tensor


def merge(x: Tensor, compared: Tensor, count: int) -> Merged:
    """Merge tokens [N,C] until `count` are left, by the cosine of `compared` [N,D].

    In a round, the even tokens that find the most similar odd one merge into it, at most half of all tokens.
    """
    both = x if compared is x else torch.cat([x, compared], dim=1)  # [N,C] or [N,C+D]
    size, first = both.new_ones(len(x)), torch.arange(len(x), device=x.device)
    while (excess := len(both) - count) > 0:
        direction = unit(both[:, -compared.shape[1] :])
        similarity = direction[::2] @ direction[1::2].T  # [ceil(N/2),floor(N/2)]
        evens, odds = similarity.shape
        order = top(similarity.amax(1), evens)
        sent, stays = order[: min(excess, odds)], order[min(excess, odds) :]
        goal = first_largest(similarity[sent])  # [R]
        member = goal == torch.arange(odds, device=x.device)[:, None]  # [floor(N/2),R]
        weighted = both * size[:, None]
        gathered = weighted[1::2] + member.to(x) @ weighted[::2][sent]
        total = size[1::2] + member.to(x) @ size[::2][sent]
        earliest = torch.where(member, first[::2][sent], len(x)).amin(1).minimum(first[1::2])
        both = torch.cat([both[::2][stays], gathered / total[:, None]])
        size, first = torch.cat([size[::2][stays], total]), torch.cat([first[::2][stays], earliest])
    return Merged(both[:, : x.shape[1]], size, first)
