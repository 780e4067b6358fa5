"""What LMA learns from a batch of conversations: one file an objective, all behind the protocol `Objective`."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from liteframe.align.batch import ChatBatch

AllReduce = Callable[[Tensor], Tensor]  # sums a tensor over all devices; every device must call it


class Objective(Protocol):
    """A loss whose normalization is known only when all micro-batches of the global batch have been seen."""

    def loss(self, model: nn.Module, inputs: dict[str, Any], batch: ChatBatch) -> tuple[Tensor, Tensor]:
        """Loss of a micro-batch, not yet normalized; remembers what `normalize` needs.

        Args:
            model: the Video LLM with its adapter.
            inputs: what it reads: input_ids and attention_mask [B,L], and the videos.
            batch: where they came from; B is at least 1.

        Returns:
            A scalar to differentiate, and the logits that it came from.
        """
        ...

    def normalize(self, parameters: Sequence[Tensor], micro_batches: int, all_reduce: AllReduce) -> dict[str, float]:
        """Normalize the gradients of the global batch in place, and forget it.

        Args:
            parameters: with the mean of the gradients over micro-batches and devices.
            micro_batches: how many were averaged, over all devices.
            all_reduce: as above.

        Returns:
            Figures to log; none where the global batch held nothing to learn from.
        """
        ...
