"""The plain mean of each window (reducers_ablations.md 3.1): what every weighting has to beat."""

from dataclasses import dataclass
from typing import ClassVar

from liteframe.reduce.base import Signals, Tokens, Window, check_window
from liteframe.reduce.wap import weighted_average_pool


@dataclass(frozen=True)
class Average:
    """The mean over windows of (t,h,w) tokens; frames that only fill the last window do not count."""

    needs: ClassVar[frozenset[str]] = frozenset()
    space: ClassVar[str] = "patch"
    exact: ClassVar[bool] = False
    window: Window = (4, 2, 2)

    def __call__(self, signals: Signals, budget: int) -> Tokens:
        """ceil(F/t) * h/kh * w/kw tokens."""
        check_window(signals, self.window, budget)
        pooled = weighted_average_pool(signals.features[None], kernel=self.window)[0]  # [ceil(F/t),h/kh,w/kw,C]
        return Tokens.grid(pooled, len(signals.tokens), self.window)
