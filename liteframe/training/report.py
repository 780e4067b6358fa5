"""report.json: what a run measured, with what, where and when."""

import datetime
import platform
import resource
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor


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
        self._sums.append(torch.cat([values * count, values.new_tensor([count])]))

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
