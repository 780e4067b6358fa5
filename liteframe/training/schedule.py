"""AdamW with decay where it belongs, and a learning rate that warms up and then follows a cosine."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn


def divide_batch(batch_size: int, micro_batch_size: int | None, devices: int) -> tuple[int, int]:
    """Clips of a micro-batch, and micro-batches of a device in an optimizer step; times the devices, the batch size.

    Raises:
        ValueError: they do not divide it.
    """
    micro = micro_batch_size or max(1, batch_size // devices)
    if batch_size % (micro * devices):
        raise ValueError(
            f"data.batch_size={batch_size} is not a multiple of data.micro_batch_size={micro} times {devices} devices; "
            f"the nearest that fits is {max(1, round(batch_size / (micro * devices))) * micro * devices}"
        )
    return micro, batch_size // (micro * devices)


@dataclass
class OptimizerSettings:
    """AdamW and its schedule.

    Attributes:
        lr: peak learning rate.
        weight_decay: decay of the matrices; vectors, positions and depthwise kernels have none.
        betas: moment decay rates.
        warmup_steps: steps of linear warm-up; at most a tenth of the run is used for it.
        final_lr_ratio: learning rate at the end, as a part of `lr`.
    """

    lr: float = 5e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 1000
    final_lr_ratio: float = 0.01

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        for name, value, good in (
            ("lr", self.lr, self.lr > 0),
            ("weight_decay", self.weight_decay, self.weight_decay >= 0),
            ("warmup_steps", self.warmup_steps, self.warmup_steps >= 0),
            ("final_lr_ratio", self.final_lr_ratio, 0 <= self.final_lr_ratio <= 1),
        ):
            if not good or not math.isfinite(value):
                raise ValueError(f"optimizer.{name} is {value}; it is out of range")


def parameter_groups(
    model: nn.Module, settings: OptimizerSettings, slower: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Decay for the weights of linear layers and of the patch embedding, none for the rest; frozen ones left out.

    Norms, biases, LayerScale and positions are scales and offsets; depthwise temporal kernels start as the identity or
    the mean, and decay would pull them away from it.

    Args:
        model: its trained parameters are grouped.
        settings: learning rate and weight decay.
        slower: name of a part of the model -> its learning rate as a part of `settings.lr`.
    """
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            ratio = next((r for part, r in (slower or {}).items() if part in name.split(".")), 1.0)
            decay = settings.weight_decay if id(parameter) in matrices else 0.0
            groups.setdefault((settings.lr * ratio, decay), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda group: group[0], reverse=True)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in ordered]


def learning_rate_factor(step: int, *, total: int, warmup: int, final: float) -> float:
    """Part of the peak rate at `step` (from 0): linear up to 1 over `warmup` steps, then a cosine down to `final`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def configure_adamw(
    model: nn.Module, settings: OptimizerSettings, total_steps: int, slower: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """What `LightningModule.configure_optimizers` returns; `slower` as in parameter_groups."""
    optimizer = torch.optim.AdamW(parameter_groups(model, settings, slower), lr=settings.lr, betas=settings.betas)
    warmup = min(settings.warmup_steps, total_steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: learning_rate_factor(step, total=total_steps, warmup=warmup, final=settings.final_lr_ratio),
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def total_steps(trainer: Trainer) -> int:
    """Optimizer steps of the whole run; the trainer's datamodule tells `steps_per_epoch()`.

    Lightning's own estimate builds the loaders before a checkpoint has been restored, at the wrong position.

    Raises:
        ValueError: neither max_steps nor max_epochs bounds the run.
    """
    return bounded_steps(trainer.max_steps, trainer.max_epochs, trainer.datamodule.steps_per_epoch())  # type: ignore[attr-defined]


def bounded_steps(max_steps: int, max_epochs: int | None, steps_per_epoch: int) -> int:
    """Optimizer steps of a run with these bounds, of which a negative one or None does not count.

    Raises:
        ValueError: neither bounds the run.
    """
    bounds = []
    if max_steps > 0:
        bounds.append(max_steps)
    if max_epochs is not None and max_epochs > 0:
        bounds.append(max_epochs * steps_per_epoch)
    if not bounds:
        raise ValueError("the run has no end: set --trainer.max_steps or --trainer.max_epochs")
    return min(bounds)
