"""`--ema.decay`: a running average of the trained weights, which validation and saved encoders use.

Lightning's WeightAveraging copies the whole module (the frozen teacher with it) before its weights are measured or
loaded, gives the plain weights back before an encoder is saved, and lets a resumed run continue from the average. Only
its arithmetic (torch.optim.swa_utils) is used here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from typing_extensions import override

from liteframe.training.sharded import copy_into_shards, full_tensor


class WeightAverage:
    """Exponential moving average of a model's trained parameters, in their own precision.

    The decay of update n (from 0) is min(decay, (1+n)/(10+n)), so that the first thousand steps of a run are not
    averaged with the weights it started from.

    Args:
        model: whose weights; the average starts as a copy.
        decay: part of the average that a step leaves, once it has ramped up.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self.weights = {name: parameter.detach().clone() for name, parameter in _trained(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        get_ema_multi_avg_fn(decay)(list(self.weights.values()), list(_trained(model).values()), self.updates)
        self.updates += 1

    @torch.no_grad()
    def exchange(self, model: nn.Module) -> None:
        """Swap the values of average and model; twice is as before."""
        for name, parameter in _trained(model).items():
            plain = parameter.clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(plain)

    def full_tensors(self) -> dict[str, Tensor]:
        """The averages, gathered where they are sharded; to be called on all ranks."""
        return {name: full_tensor(tensor) for name, tensor in self.weights.items()}

    @torch.no_grad()
    def restore(self, weights: dict[str, Tensor], updates: int) -> None:
        """Continue a saved average.

        Raises:
            ValueError: it is not an average of this model.
        """
        if weights.keys() != self.weights.keys():
            names = sorted(weights.keys() ^ self.weights.keys())
            raise ValueError(f"--resume: the averaged weights belong to another model; they differ in {names[:5]}")
        for name, mine in self.weights.items():
            copy_into_shards(mine, weights[name])
        self.updates = updates


class WeightEMA(Callback):
    """Averages the trained weights after each step; validation and saved encoders then use the average.

    The checkpoint holds both. A step that was skipped, and so has no gradients, leaves the average alone.

    Args:
        decay: of the average, e.g. 0.999; none: no average.
    """

    def __init__(self, decay: float | None = None):
        if decay is not None and not 0 < decay < 1:
            raise ValueError(f"ema.decay must be between 0 and 1 (or left out: no average), got {decay}")
        self.decay = decay
        self.average: WeightAverage | None = None
        self._saved: dict[str, Any] | None = None
        self._step = 0
        self._exchanged = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start at the weights of the run, or where its checkpoint was."""
        if self.decay is None:
            return
        self.average, self._step = WeightAverage(pl_module, self.decay), trainer.global_step
        if self._saved is not None:
            self.average.restore(self._saved["weights"], self._saved["updates"])
            self._saved = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average, if the batch completed a step and the step was made."""
        if self.average is None or trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if any(parameter.grad is not None for parameter in pl_module.parameters()):
            self.average.update(pl_module)

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._exchange(pl_module, averaged=True)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train on with the weights themselves."""
        self._exchange(pl_module, averaged=False)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the weights themselves in the model."""
        self._exchange(pl_module, averaged=False)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average beside the weights."""
        if self.average is None:
            return
        if self._exchanged:
            raise RuntimeError("a checkpoint was asked for while the model holds averaged weights")
        checkpoint["weight_average"] = {"updates": self.average.updates, "weights": self.average.full_tensors()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the average over."""
        self._saved = checkpoint.get("weight_average")

    @contextmanager
    def averaged(self, module: nn.Module) -> Iterator[None]:
        """The module holds the averaged weights inside."""
        before = self._exchanged
        self._exchange(module, averaged=True)
        try:
            yield
        finally:
            self._exchange(module, averaged=before)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, validation uses the weights themselves."""
        average, self.average = self.average, None
        try:
            yield
        finally:
            self.average = average

    def _exchange(self, module: nn.Module, *, averaged: bool) -> None:
        if self.average is not None and averaged != self._exchanged:
            self.average.exchange(module)
            self._exchanged = averaged


def weight_ema(trainer: Trainer) -> WeightEMA:
    """The run's callback; one that averages nothing for a trainer without."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, WeightEMA)), WeightEMA())


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
