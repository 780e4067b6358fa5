"""Figures of an optimizer step: means over its whole global batch, not over what one rank saw in its last turn."""

from collections.abc import Mapping

import torch
from lightning.pytorch import Trainer
from torch import Tensor


class StepMeans:
    """Sums figures over the turns of an optimizer step, then over the ranks.

    Args:
        names: of the figures.
    """

    def __init__(self, *names: str):
        self.names = names
        self._sums: list[Tensor] = []

    def add(self, count: int, means: Mapping[str, Tensor]) -> None:
        """Add a turn: the number of its items and scalar means over them."""
        values = torch.stack([means[name].detach().float() for name in self.names])
        self._sums.append(torch.cat([values * count, values.new_tensor([count])]))

    def reduce(self, trainer: Trainer) -> dict[str, Tensor]:
        """Means over all items since the last call; empty without items. Every rank must call it."""
        nothing = torch.zeros(len(self.names) + 1, device=trainer.strategy.root_device)
        *sums, count = trainer.strategy.reduce(torch.stack([nothing, *self._sums]).sum(0), reduce_op="sum")
        self._sums.clear()
        return {name: total / count for name, total in zip(self.names, sums, strict=True)} if count else {}
