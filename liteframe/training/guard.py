"""Which optimizer steps are taken and which are skipped, with a state that resumes, and the record of the skipped.

A step whose loss or gradient is not finite, or whose gradient norm is far above the running median, must not reach the
weights (performance notes: torchtitan stops, PaLM and ZClip skip). Clipping alone does not help: Adam divides by the
root of its second moment, which one spike leaves too large for a thousand steps.
"""

import math
import statistics
from collections import deque
from dataclasses import dataclass
from typing import Any

SKIPPED_STEPS = "skipped_steps.jsonl"

# What may be not finite, in the order in which a step computes it: the first is the cause of the others.
WATCHED = ("frames", "target", "prediction", "loss")
CAUSES = (*WATCHED, "gradient", "spike")

REMEDIES = {
    "frames": "look at these clips (liteframe scan)",
    "target": "check the teacher's weights and its precision, or drop these clips",
    "prediction": "lower model.optimizer.lr, or train in --trainer.precision 32-true",
    "loss": "use model.target.clipping: token_mask, or another loss",
    "gradient": "lower model.optimizer.lr, or train in --trainer.precision 32-true",
    "spike": "lower model.optimizer.lr, use model.target.clipping: token_mask, or allow more with model.guard.factor",
}


class TrainingDivergedError(RuntimeError):
    """More steps had to be skipped than the run allows."""


@dataclass
class GuardSettings:
    """When a step is skipped, and when the run stops.

    A step whose loss or gradient norm is not finite on any device is always skipped.

    Attributes:
        factor: a gradient norm (before clipping) above this many times the median of the last taken steps is a spike,
            and its step is skipped. Healthy runs on toyworld reach 5.
        window: taken steps that the median is over.
        warmup: taken steps before spikes are looked for; norms fall fast at the start.
        max_skipped: skipped steps allowed among the last `within`; one more stops the run with a dump.
        within: steps, see max_skipped.
    """

    factor: float = 20.0
    window: int = 100
    warmup: int = 50
    max_skipped: int = 5
    within: int = 100

    def __post_init__(self) -> None:
        if not self.factor > 1:
            raise ValueError(f"guard.factor is {self.factor}; a spike is above the median, so it must be above 1")
        if not 1 <= self.warmup <= self.window:
            raise ValueError(f"guard.warmup is {self.warmup}; it must be from 1 to guard.window ({self.window})")
        if not 0 <= self.max_skipped < self.within:
            raise ValueError(
                f"guard.max_skipped is {self.max_skipped}; it must be from 0 to below guard.within ({self.within})"
            )


class GradientGuard:
    """Remembers the norms of taken steps and the numbers of skipped ones.

    Args:
        settings: when to skip and when to stop.
    """

    def __init__(self, settings: GuardSettings):
        self.settings = settings
        self.skipped = 0
        self._norms: deque[float] = deque(maxlen=settings.window)
        self._recent: list[int] = []

    @property
    def median(self) -> float:
        """Of the last taken steps' norms; NaN before the first."""
        return statistics.median(self._norms) if self._norms else math.nan

    def is_spike(self, norm: float) -> bool:
        """Whether a finite norm is too far above the others."""
        return len(self._norms) >= self.settings.warmup and norm > self.settings.factor * self.median

    def take(self, norm: float) -> None:
        """The step is taken. Norms of skipped steps never enter the median, nor does 0 (no clip could be read)."""
        self._norms.append(norm)

    def skip(self, step: int) -> bool:
        """Step number `step` is skipped; returns whether this is one too many."""
        self.skipped += 1
        self._recent = [other for other in self._recent if other > step - self.settings.within] + [step]
        return len(self._recent) > self.settings.max_skipped

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to judge as this one would have."""
        return {"skipped": self.skipped, "norms": list(self._norms), "recent": list(self._recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the norms and skipped steps that `state_dict` of the run before gave."""
        self.skipped, self._recent = state["skipped"], list(state["recent"])
        self._norms = deque(state["norms"], maxlen=self.settings.window)


def describe(cause: str, norm: float, guard: GradientGuard) -> str:
    """Why a step was skipped, in words."""
    if cause == "spike":
        return (
            f"the gradient norm {norm:.4g} is above {guard.settings.factor:g} times the median {guard.median:.4g} "
            "of the steps before"
        )
    if cause in ("loss", "gradient"):
        others = "although prediction and target are" if cause == "loss" else "although the loss is"
        return f"the {cause} is not finite, {others}"
    what = {"frames": "a frame of the batch", "target": "the target", "prediction": "the model's prediction"}[cause]
    return f"the loss is not finite because {what} is not"


def json_number(value: float) -> float | str:
    """A number that JSON can hold, or the name of one that it cannot."""
    return value if math.isfinite(value) else str(value)
