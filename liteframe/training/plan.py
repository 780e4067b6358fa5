"""What a run will take, from a short warm-up in one process: the parts of a plan that CTD and LMA share."""

from dataclasses import dataclass
from typing import Any

import torch

from liteframe.training.command import TrainingCommand
from liteframe.training.profile_report import sentence, shares
from liteframe.training.profile_steps import Measurement
from liteframe.training.report import environment
from liteframe.training.schedule import bounded_steps, divide_batch

ADAMW_MOMENTS = 2
# A new checkpoint is complete before the one before the previous goes.
CHECKPOINTS = 3


@dataclass
class Extent:
    """A run's size as its configuration asks for it.

    Attributes:
        processes: devices times nodes.
        batch_size: clips or samples of an optimizer step, over all processes.
        micro_batch_size: of one process at a time.
        accumulated: micro batches of one process in a step.
    """

    processes: int
    batch_size: int
    micro_batch_size: int
    accumulated: int


class OneProcess(TrainingCommand):
    """Mixed into a training command: its rehearsal takes one process' part of each step, and prints nothing."""

    extent: Extent

    def before_instantiate_classes(self) -> None:
        """Remember how many processes would run, and be one of them."""
        super().before_instantiate_classes()
        config = self.config[self.subcommand]
        processes = count_processes(config.trainer)
        micro, accumulated = divide_batch(config.data.batch_size, config.data.micro_batch_size, processes)
        self.extent = Extent(processes, config.data.batch_size, micro, accumulated)
        config.data.micro_batch_size, config.data.batch_size = micro, micro * accumulated
        config.trainer.devices, config.trainer.num_nodes, config.trainer.strategy = 1, 1, "auto"

    def after_fit(self) -> None:
        """The plan says it."""

    def measured(self) -> Measurement:
        """What the rehearsal found.

        Raises:
            ValueError: it ended too early.
        """
        assert self.rehearsal is not None
        if self.rehearsal.measurement is None:
            raise ValueError(f"the warm-up ended at step {self.trainer.global_step}, before a step was measured")
        return self.rehearsal.measurement

    def total_steps(self, items: int) -> int:
        """Optimizer steps of the whole run over so many videos or conversations."""
        assert self.rehearsal is not None
        return bounded_steps(*self.rehearsal.planned, -(-items // self.extent.batch_size))


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


def measured_section(command: OneProcess) -> dict[str, Any]:
    """The warm-up: where, how fast, and what it waited for."""
    found = command.measured()
    rates = shares(found)
    seconds = found.seconds / found.steps
    facts = environment(command.trainer.strategy.root_device)
    return {
        "device": facts["device"],
        "threads": facts["threads"],
        "precision": str(command.trainer.precision),
        "steps": found.steps,
        "seconds_per_step": seconds,
        "data_share": rates.get("data", 0.0),
        "teacher_share": rates.get("teacher", 0.0) + rates.get("pooling", 0.0),
        "bottleneck": sentence(found, command.circumstances()),
        "remark": "one process: communication between processes is not in it" if command.extent.processes > 1 else "",
    }


def steps_section(command: OneProcess, items: int) -> dict[str, Any]:
    """How long the run is, and how a step is divided."""
    extent, steps = command.extent, command.total_steps(items)
    return {
        "steps": steps,
        "epochs": steps * extent.batch_size / items,
        "processes": extent.processes,
        "batch_size": extent.batch_size,
        "micro_batch_size": extent.micro_batch_size,
        "accumulated": extent.accumulated,
    }


def time_section(seconds_per_step: float, steps: int, command: OneProcess) -> dict[str, Any]:
    """Hours of the run, and of all its processes."""
    hours = seconds_per_step * steps / 3600
    unit = "gpu_hours" if command.trainer.strategy.root_device.type == "cuda" else "cpu_process_hours"
    return {"seconds_per_step": seconds_per_step, "hours": hours, unit: hours * command.extent.processes}


def memory_section(command: OneProcess, trained: int, frozen_bytes: int, averaged: bool) -> dict[str, Any]:
    """Memory of a process: what the weights take for certain, the measured peak, and what is left between the two."""
    known = {
        "trained_weights_bytes": 4 * trained,
        "gradients_bytes": 4 * trained,
        "optimizer_bytes": 4 * ADAMW_MOMENTS * trained,
        "averaged_weights_bytes": 4 * trained if averaged else 0,
        "frozen_weights_bytes": frozen_bytes,
    }
    peak = command.measured().peak_bytes
    rest = max(0, peak - sum(known.values()))
    return {"measured_peak_bytes": peak, **known, "activations_and_the_rest_bytes": rest}


def checkpoint_bytes(trained: int, averaged: bool) -> int:
    """Of the checkpoints that a run keeps at the same time: weights, moments, and the average of the weights."""
    return CHECKPOINTS * 4 * trained * (1 + ADAMW_MOMENTS + averaged)


def flop_section(teacher: float, trained: float, seconds: float) -> dict[str, Any]:
    """FLOPs of one process' part of a step, attention products included, and the rate that the warm-up implies."""
    total = teacher + trained
    return {"teacher_flops": teacher, "trained_flops": trained, "flops": total, "flops_per_second": total / seconds}
