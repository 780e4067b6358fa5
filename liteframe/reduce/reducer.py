"""What a reducer is, and what all have in common: how one is called, order, fit to a budget.

Shapes: F frames, n tokens a frame.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias

import torch

from liteframe.reduce.base import Signals, Tokens, Window

Order: TypeAlias = Literal["method", "raster"]


@dataclass(frozen=True)
class Reducer(ABC):
    """A pure function from a video's signals to fewer tokens; float32 inside, without any randomness.

    A reducer is a frozen dataclass whose fields are its native parameters, with its authors' defaults;
    `dataclasses.replace` changes them. It writes `reduce`.

    Attributes:
        needs: of "saliency", "keys" and "glob", those that it goes by.
        space: where its authors let it act, see Signals.tokens. Those of "patch" pool windows of the grid.
        exact: whether as many tokens come out as the budget says.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    space: ClassVar[str] = "projected"
    exact: ClassVar[bool] = False

    @abstractmethod
    def reduce(self, signals: Signals, budget: int) -> Tokens:
        """What `__call__` gives, from signals that are there and in float32; 1 <= budget, and < F * n but in "patch".

        Raises:
            ValueError: so few tokens cannot be had from so many.
        """

    @torch.no_grad()
    def __call__(self, signals: Signals, budget: int, *, order: Order = "method", fit: bool = False) -> Tokens:
        """Reduce a video to about `budget` tokens; one that has no more stays as it is, unless windows are pooled.

        Args:
            signals: of the video.
            budget: tokens for the whole video.
            order: in which the language model reads them inside a frame, "method" for its authors' own or "raster".
            fit: whether the count, where it depends on the data, is brought within 1 % below the budget, never above;
                see `fitted`.

        Raises:
            ValueError: a signal is missing, or such a budget cannot be met.
        """
        if order not in ("method", "raster"):
            raise ValueError(f'order is "method" or "raster", got {order!r}')
        if budget < 1:
            raise ValueError(f"a budget is at least 1 token, got {budget}")
        signals.require(*self.needs)
        if budget >= signals.count and self.space != "patch":
            return Tokens.kept(signals, torch.ones_like(signals.tokens[..., 0], dtype=torch.bool))
        with torch.autocast(signals.tokens.device.type, enabled=False):
            single = signals.in_float32()
            reduced = fitted(self.reduce, single, budget) if fit else self.reduce(single, budget)
        reduced = replace(reduced, tokens=reduced.tokens.to(signals.tokens.dtype))
        return reduced if order == "method" else reduced.in_raster_order()


FIT_CALLS = 8


def fitted(reduce: Callable[[Signals, int], Tokens], signals: Signals, budget: int) -> Tokens:
    """Call a method with other budgets until as many tokens come out as 99 to 100 % of `budget`.

    By bisection where a line between the ends says; an end that stays twice counts half (the Illinois method).

    Raises:
        ValueError: 8 calls do not reach that; says what came out.
    """
    aim = 0.995 * budget
    low, high = min(len(signals.tokens), budget) - 1, signals.count  # what is asked for lies between
    below, above = -aim, signals.count - aim  # what comes out there, less the aim
    asked, counts = min(budget, high - 1), list[int]()
    while len(counts) < FIT_CALLS and low < asked < high:
        reduced = reduce(signals, asked)
        counts.append(count := len(reduced.tokens))
        if 0.99 * budget <= count <= budget:
            return reduced
        if count > budget:
            below = below / 2 if len(counts) > 1 and counts[-2] > budget else below
            high, above = asked, count - aim
        else:
            above = above / 2 if len(counts) > 1 and counts[-2] <= budget else above
            low, below = asked, count - aim
        asked = min(max(round(low + (high - low) * below / (below - above)), low + 1), high - 1)
    found = ", ".join(str(count) for count in sorted(set(counts)))
    raise ValueError(
        f"no fit: {len(counts)} calls gave {found} tokens, none within 1 % below the budget of {budget}; "
        "take another budget, or what comes out without fit"
    )


def check_window(signals: Signals, window: Window, budget: int) -> None:
    """Make sure that pooling windows reaches a budget; the last window of a video need not be full.

    Raises:
        ValueError: the window does not divide the grid, or leaves more tokens than the budget allows.
    """
    frames, (t, h, w) = len(signals.tokens), window
    if signals.grid[0] % h or signals.grid[1] % w:
        raise ValueError(f"windows of {h}x{w} do not divide a grid of {signals.grid[0]}x{signals.grid[1]}")
    whole = frames * signals.tokens.shape[1] // (t * h * w)
    if budget < whole:
        raise ValueError(f"pooling in windows of {t}x{h}x{w} leaves {whole} tokens, more than the budget of {budget}")
