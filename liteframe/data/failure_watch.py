"""Failures of all ranks counted together at every step boundary, so that all ranks go on or all stop."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from liteframe.data.failures import FailureTally


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

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step's clips."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            agree_on_failures(trainer, trainer.datamodule.tally)  # type: ignore[attr-defined]

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Count the batch's clips."""
        agree_on_failures(trainer, trainer.datamodule.tally)  # type: ignore[attr-defined]
