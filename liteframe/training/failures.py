"""Videos that could not be read: counted over all ranks, listed once each, and a reason to stop when they become many.

Ranks meet different files. Each counts its own; at a step boundary all add their counts and come to the same decision,
so that no rank stops while the others wait for it.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from liteframe.data.video.errors import REMEDIES
from liteframe.journal import SharedJournal


class BadConversationsError(ValueError):
    """Conversation data that a run cannot start with; the message says what to change."""


EXAMPLES = 5
ROW_OF_FAILURES = 100
SIGMAS = 3.0
KINDS = tuple(REMEDIES)

Sum = Callable[[Sequence[int]], Sequence[int]]


class TooManyBadVideosError(RuntimeError):
    """More clips fail than the run allows."""


class FailureTally:
    """Counts attempts and failures of a run.

    Args:
        path: JSONL file that gets one row for each bad video and kind of failure; ranks share it.
        max_rate: largest allowed part of clips that fail, over the whole run and all ranks. The run stops when more
            have failed than chance explains at this rate (three standard deviations), not at the first unlucky batch.
        minimum: failures below this number never stop a run.
        remedy: the last line of the error.
    """

    def __init__(self, path: Path, max_rate: float, *, minimum: int = 3, remedy: str = ""):
        if not 0 <= max_rate <= 1:
            raise ValueError(f"max_failure_rate is {max_rate}; it is a part of all clips, within [0, 1]")
        self.path, self.max_rate, self.minimum, self.remedy = path, max_rate, minimum, remedy
        self.attempts = 0
        self.kinds: Counter[str] = Counter()
        self._pending_attempts = 0
        self._pending: Counter[str] = Counter()
        self._listed = SharedJournal(path, _what)
        self._in_a_row = 0

    @property
    def failures(self) -> int:
        """Clips that failed, as agreed last."""
        return self.kinds.total()

    @property
    def rate(self) -> float:
        """Part of the clips that failed, as agreed last."""
        return self.failures / max(1, self.attempts)

    def record(self, good: int, failures: list[dict[str, str]]) -> None:
        """Count the clips of one batch of this rank and list what is new."""
        self._pending_attempts += good + len(failures)
        self._pending.update(failure["kind"] for failure in failures)
        if any(_what(failure) not in self._listed.rows for failure in failures):
            self._listed.add(failures)

    def agree(self, sum_over_ranks: Sum = list) -> None:
        """Add the counts of all ranks since the last time; every rank must call it, and all raise or none.

        Args:
            sum_over_ranks: adds integers elementwise over the ranks.

        Raises:
            TooManyBadVideosError: the bound is exceeded, or the last hundred clips all failed (storage gone?).
        """
        counts = [self._pending_attempts, *(self._pending[kind] for kind in KINDS)]
        attempts, *failed = sum_over_ranks(counts)
        self._pending_attempts = 0
        self._pending.clear()
        self.attempts += attempts
        self.kinds.update({kind: number for kind, number in zip(KINDS, failed, strict=True) if number})
        self._in_a_row = 0 if attempts > sum(failed) else self._in_a_row + sum(failed)
        expected = self.attempts * self.max_rate
        excess = self.failures - expected > SIGMAS * math.sqrt(expected * (1 - self.max_rate))
        if any(failed) and ((excess and self.failures >= self.minimum) or self._in_a_row >= ROW_OF_FAILURES):
            raise TooManyBadVideosError(self._message())

    def summary(self) -> dict[str, Any]:
        """Figures for the report, over all ranks."""
        return {"clips_read": self.attempts - self.failures, "clips_failed": self.failures, "kinds": dict(self.kinds)}

    def state_dict(self) -> dict[str, Any]:
        """Counts as agreed last, so that a resumed run goes on counting."""
        return {"attempts": self.attempts, "kinds": dict(self.kinds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting from a checkpoint."""
        self.attempts, self.kinds = state["attempts"], Counter(state["kinds"])

    def _message(self) -> str:
        lines = [
            f"{self.failures} of {self.attempts} clips could not be read "
            f"({self.rate:.0%}; data.max_failure_rate is {self.max_rate:.0%}), for example:"
        ]
        self._listed.read()
        rows = list(self._listed.rows.values())[-EXAMPLES:]
        lines += [f"  {row['path']}: {row['kind']}: {row['reason']} ({row['remedy']})" for row in rows]
        lines.append(f"All bad videos so far are listed in {self.path}. {self.remedy}".rstrip())
        return "\n".join(lines)


def _what(row: dict[str, str]) -> tuple[str, str]:
    """What a row of bad_videos.jsonl is about."""
    return row["path"], row["kind"]


def sum_over_ranks(trainer: Trainer, numbers: Sequence[int]) -> list[int]:
    """Elementwise sum; every rank must call it."""
    tensor = torch.tensor(numbers, dtype=torch.long, device=trainer.strategy.root_device)
    return trainer.strategy.reduce(tensor, reduce_op="sum").tolist()


def agree_on_failures(trainer: Trainer, tally: FailureTally) -> None:
    """Decide together whether too many clips have failed; every rank must call it.

    Raises:
        TooManyBadVideosError: on every rank, when they have.
    """
    tally.agree(lambda counts: sum_over_ranks(trainer, counts))


class FailureWatch(Callback):
    """Agrees on the failures of the data module's `tally` after each optimizer step and each validation batch.

    It must be called before a callback that saves, so that a checkpoint holds the counts of its own step.
    """

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            agree_on_failures(trainer, trainer.datamodule.tally)  # type: ignore[attr-defined]

    @override
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        agree_on_failures(trainer, trainer.datamodule.tally)  # type: ignore[attr-defined]
