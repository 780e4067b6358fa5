"""How a run goes and what came of it: messages, the progress line, means over a step, the facts of report.json."""

import datetime
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from typing_extensions import override

from liteframe.training.schedule import total_steps

PLAIN_SECONDS = 10.0
REFRESH_SECONDS = 0.2


@rank_zero_only
def tell(message: str) -> None:
    """Print on stderr, on the first process only."""
    print(message, file=sys.stderr, flush=True)


class ProgressLine(ProgressBar):
    """Prints `step, metrics, items/s, share of time waiting for data, time left` in one line.

    A terminal sees the line change in place; a file or a pipe gets a plain line now and then. Speeds and the share are
    those of the steps since the previous line; the run's own averages are logged as `speed/*` and kept in `summary()`.
    The trainer's datamodule must have `steps_per_epoch()`.

    Args:
        metrics: what to show, {short name: logged name}.
        count: items (clips, samples) of a batch; every rank is taken to have as many.
        unit: name of an item.
    """

    def __init__(self, metrics: Mapping[str, str], *, count: Callable[[Any], float], unit: str):
        super().__init__()
        self.metrics, self.count, self.unit = dict(metrics), count, unit
        self.enabled = True
        self.seconds = self.waited = 0.0
        self.items = 0.0
        self._total = self._first_step = 0
        self._ended = self._started = self._printed = self._began = 0.0
        self._window = (0.0, 0.0, 0.0)

    def disable(self) -> None:
        """Keep measuring, print nothing (Lightning calls this on all ranks but the first)."""
        self.enabled = False

    @override
    def enable(self) -> None:
        self.enabled = True

    def state_dict(self) -> dict[str, Any]:
        """Times so far, so that a resumed run reports its whole length."""
        return {"seconds": self.seconds, "waited": self.waited, "items": self.items}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the times of the interrupted run."""
        self.seconds, self.waited, self.items = state_dict["seconds"], state_dict["waited"], state_dict["items"]

    def summary(self) -> dict[str, float]:
        """Averages over the run's training steps (validation and saving left out)."""
        seconds = max(self.seconds, 1e-9)
        return {
            "train_seconds": round(self.seconds, 3),
            f"{self.unit}_per_second": round(self.items / seconds, 4),
            "data_wait_share": round(self.waited / seconds, 4),
        }

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._total = total_steps(trainer)
        self._first_step = trainer.global_step
        self._ended = self._began = time.perf_counter()
        self._window = (self.seconds, self.waited, self.items)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Everything since the previous batch ended was waiting for this one."""
        self._started = time.perf_counter()
        self.waited += self._started - self._ended

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step, log the speeds, print if it is time to."""
        now = time.perf_counter()
        self.seconds += now - self._ended
        self.items += self.count(batch) * trainer.world_size
        self._ended = now
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        summary = self.summary()
        pl_module.log(f"speed/{self.unit}_per_second", summary[f"{self.unit}_per_second"])
        pl_module.log("speed/data_wait_share", summary["data_wait_share"])
        self._print_if_due(trainer, now)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation is neither training nor waiting for data."""
        self._ended = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the cursor on a fresh line."""
        if self.enabled and sys.stderr.isatty():
            sys.stderr.write("\n")

    def _print_if_due(self, trainer: Trainer, now: float) -> None:
        terminal = sys.stderr.isatty()
        last = trainer.global_step >= self._total
        pause = REFRESH_SECONDS if terminal else PLAIN_SECONDS
        if not self.enabled or (now - self._printed < pause and not last):
            return
        line = self._line(trainer, now)
        self._printed = now
        self._window = (self.seconds, self.waited, self.items)
        sys.stderr.write(f"\r{line}\x1b[K" if terminal else f"{line}\n")
        sys.stderr.flush()

    def _line(self, trainer: Trainer, now: float) -> str:
        logged = trainer.callback_metrics
        values = [f"{name} {float(logged[key]):.4g}" for name, key in self.metrics.items() if key in logged]
        seconds = max(self.seconds - self._window[0], 1e-9)
        speed = (self.items - self._window[2]) / seconds
        waiting = (self.waited - self._window[1]) / seconds
        step = trainer.global_step
        left = (now - self._began) / max(1, step - self._first_step) * max(0, self._total - step)
        return "  ".join(
            [
                f"step {step}/{self._total}",
                *values,
                f"{speed:.3g} {self.unit}/s",
                f"waiting {waiting:.0%}",
                f"ETA {duration(left)}",
            ]
        )


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class StepMeans:
    """Sums figures over the micro-batches of an optimizer step, then over the ranks.

    Args:
        names: of the figures.
    """

    def __init__(self, *names: str):
        self.names = names
        self._sums: list[Tensor] = []

    def add(self, count: int, means: Mapping[str, Tensor]) -> None:
        """Add a micro-batch: the number of its items and scalar means over them."""
        values = torch.stack([means[name].detach().float() for name in self.names])
        self._sums.append(torch.cat([values * count, values.new_full((1,), count)]))

    def reduce(self, trainer: Trainer) -> dict[str, Tensor]:
        """Means over all items since the last call; empty without items. Every rank must call it."""
        nothing = torch.zeros(len(self.names) + 1, device=trainer.strategy.root_device)
        *sums, count = trainer.strategy.reduce(torch.stack([nothing, *self._sums]).sum(0), reduce_op="sum")
        self._sums.clear()
        return {name: total / count for name, total in zip(self.names, sums, strict=True)} if count else {}


PACKAGES = ("liteframe", "torch", "lightning", "transformers", "timm", "torchmetrics", "safetensors", "av", "numpy")


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, machine, command and date of this process."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": [sys.executable, *sys.argv],
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        # ru_maxrss is in KiB on Linux and in bytes on macOS.
        "peak_memory_gib": round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20), 3
        ),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
