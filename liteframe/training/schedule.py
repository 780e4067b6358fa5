"""AdamW or Muon with decay where it belongs, and a learning rate that warms up and then follows a cosine."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from liteframe.models.student.encoder import Attention, Block
from liteframe.training.muon import Muon


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
    """An optimizer and its schedule.

    Attributes:
        kind: adamw; or muon, which trains the linear layers in an encoder's blocks and leaves AdamW the rest.
        lr: peak learning rate.
        muon_lr: that of Muon's layers, whose steps are as long as AdamW's at the same rate; none takes `lr`.
        split_qkv: whether Muon takes q, k and v of a layer for three matrices; false: for one, as they are stored.
        weight_decay: decay of the matrices; vectors, positions and depthwise kernels have none.
        betas: moment decay rates.
        warmup_steps: steps of linear warm-up; at most a tenth of the run is used for it.
        final_lr_ratio: learning rate at the end, as a part of `lr`.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = 5e-4
    muon_lr: float | None = None
    split_qkv: bool = True
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 1000
    final_lr_ratio: float = 0.01

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        for name, value, good in (
            ("lr", self.lr, self.lr > 0),
            ("muon_lr", self.muon_lr or self.lr, self.muon_lr is None or self.muon_lr > 0),
            ("weight_decay", self.weight_decay, self.weight_decay >= 0),
            ("warmup_steps", self.warmup_steps, self.warmup_steps >= 0),
            ("final_lr_ratio", self.final_lr_ratio, 0 <= self.final_lr_ratio <= 1),
        ):
            if not good or not math.isfinite(value):
                raise ValueError(f"optimizer.{name} is {value}; it is out of range")
        if self.muon_lr is not None and self.kind != "muon":
            raise ValueError(
                f"optimizer.muon_lr={self.muon_lr} has no effect with optimizer.kind={self.kind}; "
                "use muon, or give null for it"
            )
        if not self.split_qkv and self.kind != "muon":
            raise ValueError(f"optimizer.split_qkv=false has no effect with optimizer.kind={self.kind}; use muon")


def parameter_groups(
    model: nn.Module, settings: OptimizerSettings, slower: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Decay for the weights of linear layers and of the patch embedding, none for the rest; frozen ones left out.

    Norms, biases, LayerScale and positions are scales and offsets; depthwise temporal kernels start as the identity or
    the mean, and decay would pull them away from it.

    Args:
        model: its trained parameters are grouped.
        settings: kind, learning rates and weight decay.
        slower: name of a part of the model -> its learning rate as a part of the settings'.
    """
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    hidden = hidden_matrices(model, settings.split_qkv) if settings.kind == "muon" else {}
    # Which groups there are does not depend on rates and decays: a checkpoint's moments lie in the order of groups.
    groups: dict[tuple[str, bool, int], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = next((part for part in slower or {} if part in name.split(".")), "")
            key = part, id(parameter) in matrices, hidden.get(id(parameter), 0)
            groups.setdefault(key, []).append(parameter)
    parts = ["", *(slower or {})]
    ordered = sorted(groups, key=lambda key: (-parts.index(key[0]), key[1], key[2]), reverse=True)
    return [
        {
            "params": groups[part, decays, pieces],
            "lr": ((pieces and settings.muon_lr) or settings.lr) * ((slower or {})[part] if part else 1.0),
            "weight_decay": settings.weight_decay if decays else 0.0,
            **({"pieces": pieces} if pieces else {}),
        }
        for part, decays, pieces in ordered
    ]


def hidden_matrices(model: nn.Module, split_qkv: bool) -> dict[int, int]:
    """Id of each weight that Muon trains -> how many matrices it holds: q, k and v stand in one weight.

    They are those of the linear layers in a student's blocks. Patch embedding and head, whose rows or columns are
    pixels and channels of the teacher, are AdamW's as in Muon's own recipe, and so is what is no matrix.
    """
    attention = [module.qkv.weight for module in model.modules() if isinstance(module, Attention)]
    blocks = [block for block in model.modules() if isinstance(block, Block)]
    layers = [layer.weight for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear)]
    return {id(weight): 1 for weight in layers} | {id(weight): 3 if split_qkv else 1 for weight in attention}


@dataclass
class Schedule:
    """Part of the peak rate at each step: linear up to 1 over `warmup` steps, then a cosine down to `final`.

    A run whose end or final rate was changed follows another cosine from there on, from the rate that it had.

    Attributes:
        total: steps of the whole run, where the rate is `final`.
        warmup: steps of warm-up.
        final: the last rate, as a part of the peak.
        start: step at which the cosine was last changed.
        top: the rate at that step.
    """

    total: int
    warmup: int
    final: float
    start: int = 0
    top: float = 1.0

    def __call__(self, step: int) -> float:
        """The part at `step`, from 0."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        start, top = (self.start, self.top) if self.start >= self.warmup else (self.warmup, 1.0)
        progress = min(1.0, (step - start) / max(1, self.total - start))
        return self.final + (top - self.final) * 0.5 * (1 + math.cos(math.pi * progress))

    def extended(self, step: int, total: int, final: float) -> "Schedule":
        """From `step` on, a cosine from the rate that it has there to `final` at `total`; the warm-up stays.

        Raises:
            ValueError: the rate would be 0 for good.
        """
        if (total, final) == (self.total, self.final):
            return self
        if self(step) == final == 0:
            raise ValueError(
                f"--resume: the learning rate has come down to 0 at step {step}, and further steps would change "
                "nothing: start another run from what this one has saved, or give model.optimizer.final_lr_ratio, "
                "which is 0, a value above it"
            )
        return replace(self, total=total, final=final, start=step, top=self(step))


def configure_optimizer(
    model: nn.Module, settings: OptimizerSettings, total_steps: int, slower: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """What `LightningModule.configure_optimizers` returns; `slower` as in parameter_groups."""
    groups = parameter_groups(model, settings, slower)
    if settings.kind == "muon" and not any("pieces" in group for group in groups):
        raise ValueError(
            "optimizer.kind=muon: nothing here is for Muon, which trains the linear layers of an encoder's blocks; "
            "use adamw"
        )
    kinds: dict[str, type[Optimizer]] = {"adamw": torch.optim.AdamW, "muon": Muon}
    optimizer = kinds[settings.kind](groups, betas=settings.betas)  # type: ignore[call-arg]
    schedule = Schedule(total_steps, min(settings.warmup_steps, total_steps // 10), settings.final_lr_ratio)
    # A callable that is no function is in the scheduler's state, with all its numbers.
    scheduler = LambdaLR(optimizer, schedule)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def go_on(optimizer: Optimizer, scheduler: LambdaLR, asked: Mapping[str, Any]) -> None:
    """Let a resumed optimizer and its scheduler do what is asked of the run now, without a jump that nobody asked for.

    Their checkpoint has brought back the rates, decays and betas of before. Where nothing has changed, nothing changes.

    Args:
        optimizer: as restored.
        scheduler: its scheduler, as restored.
        asked: what `configure_optimizer` makes of the present settings.
    """
    wanted = asked["lr_scheduler"]["scheduler"]
    step, before, now = scheduler.last_epoch, scheduler.lr_lambdas[0], wanted.lr_lambdas[0]
    assert isinstance(before, Schedule)
    assert isinstance(now, Schedule)
    schedule = before.extended(step, now.total, now.final)
    scheduler.lr_lambdas, scheduler.base_lrs = [schedule] * len(wanted.base_lrs), list(wanted.base_lrs)
    scheduler._last_lr = [rate * schedule(step) for rate in scheduler.base_lrs]
    for group, new, rate in zip(
        optimizer.param_groups, asked["optimizer"].param_groups, scheduler._last_lr, strict=True
    ):
        group.update({name: value for name, value in new.items() if name != "params"} | {"lr": rate})


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
