"""Pools that weigh nothing (reducers_ablations.md 3.1): the mean of each window, its maximum, or one of its members."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from liteframe.reduce.base import Signals, Tokens, Window
from liteframe.reduce.reducer import Reducer, check_window
from liteframe.reduce.wap import weighted_average_pool


@dataclass(frozen=True)
class Average(Reducer):
    """The mean over windows of (t,h,w) tokens; frames that only fill the last window do not count."""

    space: ClassVar[str] = "patch"
    window: Window = (4, 2, 2)

    @override
    def reduce(self, signals: Signals, budget: int) -> Tokens:
        """ceil(F/t) * h/kh * w/kw tokens."""
        check_window(signals, self.window, budget)
        pooled = weighted_average_pool(signals.features[None], kernel=self.window)[0]  # [ceil(F/t),h/kh,w/kw,C]
        return Tokens.grid(pooled, len(signals.tokens), self.window)


@dataclass(frozen=True)
class Maximum(Reducer):
    """The largest value of each channel in windows of (t,h,w) tokens."""

    space: ClassVar[str] = "patch"
    window: Window = (4, 2, 2)

    @override
    def reduce(self, signals: Signals, budget: int) -> Tokens:
        """ceil(F/t) * h/kh * w/kw tokens."""
        return Tokens.grid(_windows(signals, self.window, budget).amax((1, 3, 5)), len(signals.tokens), self.window)


@dataclass(frozen=True)
class Subsample(Reducer):
    """The first member of windows of (t,h,w) tokens, that at offset (0,0,0); the paper does not say which it takes."""

    space: ClassVar[str] = "patch"
    window: Window = (4, 2, 2)

    @override
    def reduce(self, signals: Signals, budget: int) -> Tokens:
        """ceil(F/t) * h/kh * w/kw tokens."""
        firsts = _windows(signals, self.window, budget)[:, 0, :, 0, :, 0]
        return Tokens.grid(firsts, len(signals.tokens), self.window)


def _windows(signals: Signals, window: Window, budget: int) -> Tensor:
    """[ceil(F/t),t,h/kh,kh,w/kw,kw,C]; the last window is filled with copies of the last frame."""
    check_window(signals, window, budget)
    features, (t, h, w) = signals.features, window
    frames = [min(frame, len(features) - 1) for frame in range(-(-len(features) // t) * t)]
    return features[frames].unflatten(2, (-1, w)).unflatten(1, (-1, h)).unflatten(0, (-1, t))
