"""`--profile`: some steps of a run that warm up, some that count, a few more under torch.profiler, and their report."""

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
from typing_extensions import override

from liteframe.files import write_json
from liteframe.training.profile_ranges import LABELS, RangeProfiler
from liteframe.training.report import environment

WARMUP_STEPS = 3
TRACED_STEPS = 2
# Parts that have one cause.
CAUSES = {"pooling": "teacher", "forward": "student", "backward": "student"}


@dataclass
class Measurement:
    """What the counted steps of a profiled run took, mean over ranks.

    Attributes:
        steps: optimizer steps that were counted.
        seconds: wall time of all of them.
        parts: seconds of each part; they sum to about `seconds`.
        clock: "device" (GPU stream) or "host" (wall).
        peak_bytes: largest memory so far: of the allocator on a GPU, of the process on a CPU.
    """

    steps: int
    seconds: float
    parts: dict[str, float]
    clock: str
    peak_bytes: int

    def shares(self) -> dict[str, float]:
        """Part of the measured wall time, by part, in the order of a step; they sum to about 1."""
        return {part: self.parts[part] / self.seconds for part in LABELS if part in self.parts}

    def bottleneck(self) -> tuple[str, float]:
        """Name and share of what takes longest."""
        groups: dict[str, float] = {}
        for part, share in self.shares().items():
            group = CAUSES.get(part, part)
            groups[group] = groups.get(group, 0.0) + share
        return max(groups.items(), key=lambda group: group[1])

    def sentence(self) -> str:
        """The bottleneck and its share in words, such as "teacher: 61% of a step"."""
        name, share = self.bottleneck()
        return f"{name}: {share:.0%} {'waiting' if name == 'data' else 'of a step'}"

    def table(self) -> str:
        """Milliseconds and share of each part, and the sum beside the measured step."""
        step = 1000 * self.seconds / self.steps
        rows = [(LABELS[part], share) for part, share in self.shares().items()]
        rows += [("sum", sum(self.shares().values())), ("step, measured as a whole", 1.0)]
        lines = [f"{label:36s}{share * step:10.1f} ms{share:8.1%}" for label, share in rows]
        return "\n".join([f"{self.steps} steps, {'GPU stream' if self.clock == 'device' else 'wall clock'}", *lines])


class StepProfile(Callback):
    """Measures steps of a run that ends after them; it must be the last callback.

    Args:
        steps: optimizer steps to count, after a few that warm up.
        trace: folder for a trace of a few further steps (Chrome, Perfetto and TensorBoard read it).
    """

    def __init__(self, steps: int, trace: Path):
        self.steps, self.trace = steps, trace
        self.profiler = RangeProfiler()
        self.measurement: Measurement | None = None
        self._began = 0.0
        self._tracing: profile | None = None

    @property
    def all_steps(self) -> int:
        """Optimizer steps of the whole run: those that warm up, are counted, are traced."""
        return WARMUP_STEPS + self.steps + TRACED_STEPS

    def measured(self, trainer: Trainer) -> Measurement:
        """What the counted steps took.

        Raises:
            ValueError: the run ended before they were over.
        """
        if self.measurement is None:
            raise ValueError(f"the run ended at step {trainer.global_step}, before its steps were measured")
        return self.measurement

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.profiler.cuda = trainer.strategy.root_device.type == "cuda"
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            trainer.strategy.model.register_comm_hook(None, self.profiler.communication_hook)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if trainer.global_step == WARMUP_STEPS:
            if self.profiler.cuda:
                torch.cuda.reset_peak_memory_stats(pl_module.device)
            self.profiler.begin()
            self._began = time.perf_counter()
        elif trainer.global_step == WARMUP_STEPS + self.steps:
            self._measure(trainer)
            self._start_trace(trainer)
        elif trainer.global_step == self.all_steps and self._tracing is not None:
            self._tracing.stop()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._tracing is not None:
            self._tracing.stop()

    def _measure(self, trainer: Trainer) -> None:
        device, parts = trainer.strategy.root_device, self.profiler.end()
        seconds = time.perf_counter() - self._began
        # A rank that got no clip has seen fewer parts.
        values = torch.tensor([seconds, *(parts.get(part, 0.0) for part in LABELS)], device=device)
        mean = trainer.strategy.reduce(values, reduce_op="mean").tolist()
        self.measurement = Measurement(
            steps=self.steps,
            seconds=mean[0],
            parts={part: spent for part, spent in zip(LABELS, mean[1:], strict=True) if spent},
            clock="device" if self.profiler.cuda else "host",
            peak_bytes=peak_bytes(device),
        )

    def _start_trace(self, trainer: Trainer) -> None:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.profiler.cuda else [])]
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


def shorten(settings: Any) -> StepProfile:
    """Make the settings of a run those of a short one beside it, of which nothing is validated, saved or resumed.

    Raises:
        ValueError: a negative number of steps, or a run that is to be resumed.
    """
    if settings.profile < 0 or settings.resume:
        raise ValueError("--profile takes a number of steps, and measures a run from its start: leave out --resume")
    step_profile = StepProfile(settings.profile, trace=Path(settings.run) / "profile")
    settings.run = str(step_profile.trace)
    settings.trainer.max_steps, settings.trainer.max_epochs = step_profile.all_steps, -1
    settings.trainer.limit_val_batches = 0
    return step_profile


def write_profile(trainer: Trainer, step_profile: StepProfile, settings: Any) -> None:
    """Print the table and the bottleneck, and write profile.json beside the folder of the trace.

    Raises:
        ValueError: the run ended before its steps were measured.
    """
    measured, data = step_profile.measured(trainer), trainer.datamodule  # type: ignore[attr-defined]
    path, step = step_profile.trace.parent / "profile.json", measured.seconds / measured.steps
    name, share = measured.bottleneck()
    record = {
        "kind": "profile",
        "steps": measured.steps,
        "seconds_per_step": step,
        "clock": measured.clock,
        "parts": {part: {"seconds_per_step": s * step, "share": s} for part, s in measured.shares().items()},
        "bottleneck": {"part": name, "share": share, "sentence": measured.sentence()},
        "peak_bytes": measured.peak_bytes,
        "trace": str(step_profile.trace),
        "batch_size": data.batch_size,
        "micro_batch_size": data.micro_batch_size,
        "accumulated": trainer.accumulate_grad_batches,
        "devices": trainer.world_size,
        "workers": data.workers,
        "compiled": settings.model.get("compile", False),
        "cached": settings.data.get("cache") is not None,
        "precision": str(trainer.precision),
    }
    write_json(path, {**record, **environment(trainer.strategy.root_device)})
    print(f"{measured.table()}\n{measured.sentence()}\nwrote {path}; trace in {step_profile.trace}")
