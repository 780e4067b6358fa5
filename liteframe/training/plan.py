"""What a run will take, from a short warm-up in one process: the parts of a plan that CTD and LMA share."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from liteframe.training.command import Run, TrainingCommand, load_run
from liteframe.training.profile_run import Measurement, StepProfile
from liteframe.training.report import environment
from liteframe.training.schedule import bounded_steps, divide_batch

# A new checkpoint is complete before the one before the previous goes.
CHECKPOINTS = 3


class WarmUp(NamedTuple):
    """A short run in one process, which takes its part of each step, and the size of the run that is planned.

    Attributes:
        run: module, data and trainer as the short run has left them; the settings are those of the planned run.
        measured: what a step of it took.
        processes: devices times nodes of the planned run.
        micro_batch_size: clips or samples of one process at a time.
        accumulated: micro-batches of one process in a step.
    """

    run: Run
    measured: Measurement
    processes: int
    micro_batch_size: int
    accumulated: int

    @property
    def batch_size(self) -> int:
        """Clips or samples of an optimizer step, over all processes."""
        return self.processes * self.micro_batch_size * self.accumulated

    @property
    def seconds_per_step(self) -> float:
        """Wall time of an optimizer step, the mean of the short run's counted steps."""
        return self.measured.seconds / self.measured.steps


def warm_up(kind: Callable[..., TrainingCommand], arguments: Sequence[str]) -> WarmUp:
    """Train a few steps and throw them away.

    Args:
        kind: CTDCommand or LMACommand.
        arguments: what would follow `fit`, with --run and --profile.

    Raises:
        ValueError: the batch size does not divide, or the run ended too early.
    """
    settings = load_run(kind, arguments).settings
    processes = count_processes(settings.trainer)
    micro, accumulated = divide_batch(settings.data.batch_size, settings.data.micro_batch_size, processes)
    one_process = [f"--data.batch_size={micro * accumulated}", f"--data.micro_batch_size={micro}"]
    run = load_run(kind, [*arguments, *one_process])._replace(settings=settings)
    run.trainer.fit(run.module, datamodule=run.data)
    (step_profile,) = (callback for callback in run.trainer.callbacks if isinstance(callback, StepProfile))  # type: ignore[attr-defined]
    return WarmUp(run, step_profile.measured(run.trainer), processes, micro, accumulated)


def count_processes(trainer: Any) -> int:
    """Processes that a trainer's settings start, "auto" and -1 being all devices of this machine."""
    devices = trainer.devices
    if isinstance(devices, str) and devices.lstrip("-").isdigit():
        devices = int(devices)
    if isinstance(devices, list):
        devices = len(devices)
    if not isinstance(devices, int) or devices < 1:
        cuda = trainer.accelerator in ("auto", "gpu", "cuda")
        devices = max(1, torch.cuda.device_count()) if cuda else 1
    return devices * trainer.num_nodes


def measured_section(warm: WarmUp) -> dict[str, Any]:
    """The warm-up: where, how fast, and what it waited for."""
    shares, trainer = warm.measured.shares(), warm.run.trainer
    facts = environment(trainer.strategy.root_device)
    return {
        "device": facts["device"],
        "threads": facts["threads"],
        "precision": str(trainer.precision),
        "steps": warm.measured.steps,
        "seconds_per_step": warm.seconds_per_step,
        "data_share": shares.get("data", 0.0),
        "teacher_share": shares.get("teacher", 0.0) + shares.get("pooling", 0.0),
        "bottleneck": warm.measured.sentence(),
        "remark": "one process: communication between processes is not in it" if warm.processes > 1 else "",
    }


def steps_section(warm: WarmUp, items: int) -> dict[str, Any]:
    """How long the run over so many videos or conversations is, and how a step is divided."""
    trainer = warm.run.settings.trainer
    steps = bounded_steps(trainer.max_steps, trainer.max_epochs, -(-items // warm.batch_size))
    return {
        "steps": steps,
        "epochs": steps * warm.batch_size / items,
        "processes": warm.processes,
        "batch_size": warm.batch_size,
        "micro_batch_size": warm.micro_batch_size,
        "accumulated": warm.accumulated,
    }


def time_section(seconds_per_step: float, steps: int, warm: WarmUp) -> dict[str, Any]:
    """Hours of the run, and of all its processes."""
    hours = seconds_per_step * steps / 3600
    unit = "gpu_hours" if warm.run.trainer.strategy.root_device.type == "cuda" else "cpu_process_hours"
    return {"seconds_per_step": seconds_per_step, "hours": hours, unit: hours * warm.processes}


def memory_section(warm: WarmUp, trained: int, frozen_bytes: int, averaged: bool) -> dict[str, Any]:
    """Memory of a process: what the weights take for certain, the measured peak, and what is left between the two."""
    certain = {
        "trained_weights_bytes": 4 * trained,
        "gradients_bytes": 4 * trained,
        "optimizer_bytes": moment_bytes(warm),
        "averaged_weights_bytes": 4 * trained if averaged else 0,
        "frozen_weights_bytes": frozen_bytes,
    }
    peak = warm.measured.peak_bytes
    rest = max(0, peak - sum(certain.values()))
    return {"measured_peak_bytes": peak, **certain, "activations_and_the_rest_bytes": rest}


def moment_bytes(warm: WarmUp) -> int:
    """What the optimizer keeps: for each weight two moments of AdamW, or one of Muon."""
    groups = [group for optimizer in warm.run.trainer.optimizers for group in optimizer.param_groups]
    return sum(4 * weight.numel() * (1 if "pieces" in group else 2) for group in groups for weight in group["params"])


def checkpoint_bytes(warm: WarmUp, trained: int, averaged: bool) -> int:
    """Of the checkpoints that a run keeps at the same time: weights, moments, and the average of the weights."""
    return CHECKPOINTS * (4 * trained * (1 + averaged) + moment_bytes(warm))


def flop_section(teacher: float, trained: float, seconds: float) -> dict[str, Any]:
    """FLOPs of one process' part of a step, attention products included, and the rate that the warm-up implies."""
    total = teacher + trained
    return {"teacher_flops": teacher, "trained_flops": trained, "flops": total, "flops_per_second": total / seconds}
