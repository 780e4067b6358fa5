"""Where the time of training steps goes: named ranges that add up to it, with no synchronization in between.

The time line is cut at every start and end of a range, and each piece belongs to the innermost range around it. On a
GPU the cuts are events in its stream: a piece is then what the device spent, working or waiting, so waiting for data
counts only as far as the device had nothing else to do.
"""

import time
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from lightning.pytorch.profilers import Profiler
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future

OTHER = "other"
# In the order of a step.
PARTS = (
    "data", "transfer", "teacher", "pooling", "student", "forward", "backward", "communication", "optimizer", "logging",
    OTHER,
)  # fmt: skip
# Lightning's names of actions end so.
ACTIONS = {
    "train_dataloader_next": "data",
    "on_before_batch_transfer": "transfer",
    "batch_to_device": "transfer",
    "on_after_batch_transfer": "transfer",
    "training_step": "forward",
    "backward": "backward",
    "optimizer_step": "optimizer",
    "optimizer_zero_grad": "optimizer",
    "configure_gradient_clipping": "optimizer",
    "lr_scheduler_step": "optimizer",
}
# What the training modules name themselves.
OWN = {"teacher": "teacher", "pooling": "pooling", "student": "student", "metrics": "logging"}


def part_of(action: str) -> str | None:
    """The part of a step that an action belongs to; None where it belongs to the range around it."""
    if action.startswith("[Callback]"):
        return "logging"
    return OWN.get(action) or ACTIONS.get(action.rsplit(".", 1)[-1])


class Clock(Protocol):
    """A time line that can be marked cheaply and measured afterwards."""

    def mark(self) -> Any:
        """Now."""

    def settle(self) -> None:
        """Wait until all marks have happened."""

    def between(self, first: Any, second: Any) -> float:
        """Seconds from one mark to another."""


class HostClock:
    """Wall time."""

    def mark(self) -> float:
        """Now."""
        return time.perf_counter()

    def settle(self) -> None:
        """Marks of wall time happen at once."""

    def between(self, first: float, second: float) -> float:
        """Seconds from one mark to another."""
        return second - first


class DeviceClock:
    """Time of the current CUDA stream."""

    def mark(self) -> torch.cuda.Event:
        """When the device has come so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def settle(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize()

    def between(self, first: torch.cuda.Event, second: torch.cuda.Event) -> float:
        """Seconds from one mark to another."""
        return first.elapsed_time(second) / 1000


class RangeProfiler(Profiler):
    """Lightning's profiler hooks, summed by part between `begin` and `end`; every part is also a range in a trace.

    Args:
        clock: what to measure with.
    """

    def __init__(self, clock: Clock):
        super().__init__()
        self.clock = clock
        self.recording = False
        self._open: list[tuple[str, str | None, AbstractContextManager[Any] | None]] = []
        self._cuts: list[tuple[Any, str]] = []

    def start(self, action_name: str) -> None:
        """Enter a range."""
        part, shown = part_of(action_name), None
        if part is not None:
            shown = torch.profiler.record_function(part)
            shown.__enter__()
        self._open.append((action_name, part, shown))
        if part is not None:
            self._cut()

    def stop(self, action_name: str) -> None:
        """Leave a range, and those inside it that an exception has left open."""
        while self._open:
            name, part, shown = self._open.pop()
            if shown is not None:
                shown.__exit__(None, None, None)
            if part is not None:
                self._cut()
            if name == action_name:
                return

    def begin(self) -> None:
        """Start to count."""
        self.clock.settle()
        self.recording = True
        self._cuts = []
        self._cut()

    def end(self) -> dict[str, float]:
        """Stop counting; seconds of each part since `begin`."""
        self._cut()
        self.recording = False
        self.clock.settle()
        seconds: dict[str, float] = {}
        for (mark, part), (following, _) in zip(self._cuts, self._cuts[1:], strict=False):
            seconds[part] = seconds.get(part, 0.0) + self.clock.between(mark, following)
        return seconds

    def _cut(self) -> None:
        if self.recording:
            inside = (part for _, part, _ in reversed(self._open) if part is not None)
            self._cuts.append((self.clock.mark(), next(inside, OTHER)))


class Communication:
    """DDP's averaging of gradients, timed: what is left of it when the last gradient is there holds up the step.

    Args:
        profiler: tells when to count, and with which clock.
    """

    def __init__(self, profiler: RangeProfiler):
        self.profiler = profiler
        self._last: list[tuple[Any, Any]] = []

    def hook(self, group: Any, bucket: torch.distributed.GradBucket) -> Future[Tensor]:
        """DDP's own all-reduce, with a mark before and after that of the last bucket."""
        counted = self.profiler.recording and bucket.is_last()
        launched = self.profiler.clock.mark() if counted else None
        result = allreduce_hook(group, bucket)
        if not counted:
            return result

        def finished(future: Future[Tensor]) -> Tensor:
            self._last.append((launched, self.profiler.clock.mark()))
            return future.value()

        return result.then(finished)

    def seconds(self) -> float:
        """Time that backward passes since `begin` have spent on nothing but communication; call it after `end`."""
        return sum(self.profiler.clock.between(launched, finished) for launched, finished in self._last)
