"""Target statistics of a live run: measured once over all processes, and kept with the run."""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from liteframe.distill.statistics import FeatureStatistics
from liteframe.distill.targets import TargetBuilder
from liteframe.training.run_folder import write_atomically


@torch.no_grad()
def measure_statistics(
    tokens: Iterable[Tensor], channels: int, device: torch.device, *, full: bool
) -> FeatureStatistics:
    """Statistics of features over all processes; each brings batches [tokens,C] of its own, also empty ones.

    Args:
        tokens: raw pooled features.
        channels: C.
        device: where they are.
        full: measure the covariance too.
    """
    statistics = FeatureStatistics(channels, device, full=full)
    for batch in tokens:
        statistics.update(batch)
    statistics.reduce()
    return statistics


def save_statistics(target: TargetBuilder, tokens: int, folder: Path) -> None:
    """Write what a fitted target has frozen, and the number of tokens behind it, into a run's folder."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in target.state_dict().items()}
    write_atomically(folder / "target_statistics.safetensors", save(tensors, {"tokens": str(tokens)}))
