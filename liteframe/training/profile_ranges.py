"""Where the time of training steps goes: named ranges that add up to it, with no synchronization in between.

The time line is cut at every start and end of a range, and each piece belongs to the innermost range around it. On a
GPU the cuts are events in its stream: a piece is then what the device spent, working or waiting, so waiting for data
counts only as far as the device had nothing else to do.
"""

import time
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch.profilers import Profiler
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future
from typing_extensions import override

OTHER = "other"
# Parts of a step, in its order, as they are printed.
LABELS = {
    "data": "data (decode, or wait for workers)",
    "transfer": "transfer, resize",
    "teacher": "teacher",
    "pooling": "pooling of targets",
    "student": "student forward",
    "forward": "loss, rest of forward",
    "backward": "backward",
    "communication": "communication",
    "optimizer": "optimizer, clipping",
    "logging": "logging, callbacks",
    OTHER: "other (loop, hooks)",
}
# Last words of Lightning's actions, and the ranges that the training modules name themselves.
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
    "teacher": "teacher",
    "pooling": "pooling",
    "student": "student",
    "metrics": "logging",
}


def part_of(action: str) -> str | None:
    """The part of a step that an action belongs to; None where it belongs to the range around it."""
    return "logging" if action.startswith("[Callback]") else ACTIONS.get(action.rsplit(".", 1)[-1])


class RangeProfiler(Profiler):
    """Lightning's profiler hooks, summed by part between `begin` and `end`; every part is also a range in a trace.

    Attributes:
        cuda: whether time is that of the current CUDA stream; wall time otherwise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cuda = self.recording = False
        self._open: list[tuple[str, str | None, AbstractContextManager[Any] | None]] = []
        self._cuts: list[tuple[Any, str]] = []
        self._last_reductions: list[tuple[Any, Any]] = []

    @override
    def start(self, action_name: str) -> None:
        part, trace_range = part_of(action_name), None
        if part is not None:
            trace_range = torch.profiler.record_function(part)
            trace_range.__enter__()
        self._open.append((action_name, part, trace_range))
        if part is not None:
            self._cut()

    @override
    def stop(self, action_name: str) -> None:
        # An exception may have left ranges open inside this one.
        while self._open:
            name, part, trace_range = self._open.pop()
            if trace_range is not None:
                trace_range.__exit__(None, None, None)
            if part is not None:
                self._cut()
            if name == action_name:
                return

    def communication_hook(self, group: Any, bucket: torch.distributed.GradBucket) -> Future[Tensor]:
        """DDP's own all-reduce; that of a step's last bucket holds up the backward pass, and is timed."""
        counted = self.recording and bucket.is_last()
        launched = self._now() if counted else None
        reduced = allreduce_hook(group, bucket)
        if not counted:
            return reduced

        def finished(future: Future[Tensor]) -> Tensor:
            self._last_reductions.append((launched, self._now()))
            return future.value()

        return reduced.then(finished)

    def begin(self) -> None:
        """Start counting once the device has done what was launched before."""
        self._settle()
        self.recording = True
        self._cuts, self._last_reductions = [], []
        self._cut()

    def end(self) -> dict[str, float]:
        """Stop counting; seconds of each part since `begin`."""
        self._cut()
        self.recording = False
        self._settle()
        seconds: dict[str, float] = {}
        for (mark, part), (following, _) in zip(self._cuts, self._cuts[1:], strict=False):
            seconds[part] = seconds.get(part, 0.0) + self._between(mark, following)
        exposed = sum(self._between(launched, finished) for launched, finished in self._last_reductions)
        if exposed := min(exposed, seconds.get("backward", 0.0)):
            seconds["communication"] = exposed
            seconds["backward"] -= exposed
        return seconds

    def _cut(self) -> None:
        if self.recording:
            inside = (part for _, part, _ in reversed(self._open) if part is not None)
            self._cuts.append((self._now(), next(inside, OTHER)))

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _settle(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def _between(self, first: Any, second: Any) -> float:
        return first.elapsed_time(second) / 1000 if self.cuda else second - first
