"""Supervised fine-tuning with a teacher's next-token distribution as a soft target beside the labels.

arXiv 1503.02531, at temperature 1, where a soft target's gradient and a label's have the same scale.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from liteframe.align.batch import ChatBatch
from liteframe.align.objectives import AllReduce
from liteframe.align.objectives.sft import SupervisedFineTuning
from liteframe.models.vlm.chat import IGNORE

Teacher = Callable[[ChatBatch], Sequence[Tensor | None]]


class LogitDistillation(SupervisedFineTuning):
    """Cross-entropy of the answers, and `weight` times the divergence from what a teacher says in their place.

    Args:
        weight: of the divergence; both are means over the answer tokens of the global batch.
        teacher: log-probabilities [n,vocabulary] at the n answer tokens of each of the B conversations, or None for one
            that has no soft target.
    """

    def __init__(self, weight: float, teacher: Teacher) -> None:
        super().__init__()
        self.weight, self.teacher = weight, teacher
        self._sums: list[Tensor] = []

    @override
    def loss(self, model: nn.Module, inputs: dict[str, Any], batch: ChatBatch) -> tuple[Tensor, Tensor]:
        targets = self.teacher(batch)
        total, logits = super().loss(model, inputs, batch)
        soft, tokens = divergence(logits, batch.labels, batch.answers, targets)
        self._sums.append(torch.stack([soft.detach().double(), tokens.double()]))
        return total + self.weight * soft, logits

    @override
    def normalize(self, parameters: Sequence[Tensor], micro_batches: int, all_reduce: AllReduce) -> dict[str, float]:
        figures = super().normalize(parameters, micro_batches, all_reduce)
        none = torch.zeros(2, dtype=torch.float64, device=parameters[0].device)
        soft, tokens = all_reduce(torch.stack([none, *self._sums]).sum(0)).tolist()
        self._sums.clear()
        return {**figures, "train/distillation_loss": soft / tokens} if tokens else figures


def divergence(
    logits: Tensor, labels: Tensor, positions: Tensor, targets: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Kullback-Leibler divergence of the next tokens from soft targets.

    Args:
        logits: [B,K,vocabulary] at `positions`.
        labels: [B,L], -100 where nothing is learned.
        positions: [K], see ChatBatch.answers.
        targets: of each row, log-probabilities [n,vocabulary] at its n learned tokens, or None.

    Returns:
        Its sum over the tokens that have a target, float32, and how many these are.

    Raises:
        ValueError: a row has another number of learned tokens than targets.
    """
    learned = labels[:, 1:][:, positions] != IGNORE  # [B,K]
    total, tokens = logits.new_zeros((), dtype=torch.float32), learned.new_zeros((), dtype=torch.long)
    for row, mask, target in zip(logits, learned, targets, strict=True):
        if target is None:
            continue
        said = row[mask].float().log_softmax(-1)  # [n,vocabulary]
        if said.shape != target.shape:
            raise ValueError(f"a row has {len(said)} answer tokens, and its teacher {len(target)}")
        total = total + (target.exp() * (target - said)).sum()
        tokens = tokens + len(said)
    return total, tokens
