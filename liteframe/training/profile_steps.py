"""A short run that is measured, not kept: some steps to warm up, some that count, a few more under torch.profiler."""

import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile, tensorboard_trace_handler

from liteframe.training.profile_ranges import PARTS, Communication, DeviceClock, HostClock, RangeProfiler

WARMUP_STEPS = 3
TRACED_STEPS = 2


@dataclass
class Measurement:
    """What the counted steps of a rehearsal took, mean over ranks.

    Attributes:
        steps: optimizer steps that were counted.
        seconds: wall time of all of them.
        parts: seconds of each part; they sum to about `seconds`.
        clock: "device" (GPU stream) or "host" (wall).
        peak_bytes: largest memory so far: of the allocator on a GPU, of the process on a CPU.
        trace: folder of the trace.
    """

    steps: int
    seconds: float
    parts: dict[str, float]
    clock: str
    peak_bytes: int
    trace: Path


class Rehearsal(Callback):
    """Measures steps of a run that ends after them; it must be the last callback.

    Args:
        steps: optimizer steps to count, after a few that warm up.
        trace: folder for a trace of a few further steps (Chrome, Perfetto and TensorBoard read it).
        planned: max_steps and max_epochs of the run that is rehearsed.
    """

    def __init__(self, steps: int, trace: Path, planned: tuple[int, int | None]):
        self.steps, self.trace, self.planned = steps, trace, planned
        self.profiler = RangeProfiler(HostClock())
        self.communication = Communication(self.profiler)
        self.measurement: Measurement | None = None
        self._began = 0.0
        self._tracing: profile | None = None

    @property
    def all_steps(self) -> int:
        """Optimizer steps of the run."""
        return WARMUP_STEPS + self.steps + TRACED_STEPS

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the clock; watch DDP's communication."""
        if trainer.strategy.root_device.type == "cuda":
            self.profiler.clock = DeviceClock()
        model = trainer.strategy.model
        if isinstance(model, DistributedDataParallel):
            model.register_comm_hook(None, self.communication.hook)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin and end what is measured between two steps."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        done = trainer.global_step
        if done == WARMUP_STEPS:
            if pl_module.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(pl_module.device)
            self.profiler.begin()
            self._began = time.perf_counter()
        elif done == WARMUP_STEPS + self.steps:
            self._measure(trainer)
            self._start_trace(trainer)
        elif done == self.all_steps and self._tracing is not None:
            self._tracing.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the trace of a run that failed."""
        if self._tracing is not None:
            self._tracing.stop()

    def _measure(self, trainer: Trainer) -> None:
        device = trainer.strategy.root_device
        parts = self.profiler.end()
        seconds = time.perf_counter() - self._began
        exposed = min(self.communication.seconds(), parts.get("backward", 0.0))
        if trainer.world_size > 1:
            parts["communication"] = exposed
            parts["backward"] = parts.get("backward", 0.0) - exposed
        # A rank that got no clip has seen fewer parts.
        values = torch.tensor([seconds, *(parts.get(part, 0.0) for part in PARTS)], device=device)
        mean = trainer.strategy.reduce(values, reduce_op="mean").tolist()
        self.measurement = Measurement(
            steps=self.steps,
            seconds=mean[0],
            parts={part: spent for part, spent in zip(PARTS, mean[1:], strict=True) if spent},
            clock="device" if device.type == "cuda" else "host",
            peak_bytes=peak_bytes(device),
            trace=self.trace,
        )

    def _start_trace(self, trainer: Trainer) -> None:
        cuda = trainer.strategy.root_device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        writer = tensorboard_trace_handler(str(self.trace), worker_name=f"rank{trainer.global_rank}", use_gzip=True)
        # Kineto tells the terminal about each start and stop, and about a missing GPU, unless told not to.
        os.environ.setdefault("KINETO_LOG_LEVEL", "9")
        self._tracing = profile(activities=activities, on_trace_ready=writer)
        self._tracing.start()


def peak_bytes(device: torch.device) -> int:
    """Largest memory so far: of the allocator on a GPU, of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
