"""Supervised fine-tuning: the next token of each answer, averaged over the answer tokens of the global batch."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liteframe.align.batch import ChatBatch
from liteframe.align.objectives import AllReduce
from liteframe.models.vlm.chat import IGNORE
from liteframe.models.vlm.placeholders import place_features


class AnswerLoss(NamedTuple):
    """Sums over the answer tokens of a batch.

    Attributes:
        total: sum of the cross-entropies, float32.
        tokens: number of answer tokens.
        correct: how many of them have the highest logit.
    """

    total: Tensor
    tokens: Tensor
    correct: Tensor


class SupervisedFineTuning:
    """Cross-entropy of the answers as sums with their counts: a mean of means would weigh short answers more."""

    def __init__(self) -> None:
        self._losses: list[AnswerLoss] = []

    def loss(self, model: nn.Module, inputs: dict[str, Any], batch: ChatBatch) -> tuple[Tensor, Tensor]:
        """Summed loss of the answers, and their logits [B,K,vocabulary]; see Objective."""
        logits = model(**inputs, logits_to_keep=batch.answers).logits  # [B,L] -> [B,K,vocabulary]
        loss = answer_loss(logits, batch.labels, batch.answers)
        self._losses.append(loss._replace(total=loss.total.detach()))
        return loss.total, logits

    def normalize(self, parameters: Sequence[Tensor], micro_batches: int, all_reduce: AllReduce) -> dict[str, float]:
        """Divide by the answer tokens of the global batch; see Objective."""
        sums = torch.zeros(3, dtype=torch.float64, device=parameters[0].device)
        for loss in self._losses:
            sums += torch.stack([part.double() for part in loss])
        self._losses.clear()
        total, tokens, correct = all_reduce(sums).tolist()
        if not tokens:
            return {}
        # Lightning has divided by the accumulation steps, and distributed training by the devices.
        scale_gradients(parameters, micro_batches / tokens)
        return {"train/loss": total / tokens, "train/answer_accuracy": correct / tokens}


def answer_loss(logits: Tensor, labels: Tensor, positions: Tensor) -> AnswerLoss:
    """Cross-entropy of the next tokens.

    Args:
        logits: [B,K,vocabulary] at `positions`.
        labels: [B,L], -100 where nothing is learned.
        positions: [K], see ChatBatch.answers.
    """
    targets = labels[:, 1:][:, positions]  # [B,L] -> [B,K]
    learned = targets != IGNORE
    total = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    correct = (logits.argmax(-1) == targets) & learned
    return AnswerLoss(total, learned.sum(), correct.sum())


def features_of(inputs: dict[str, Any]) -> list[Tensor]:
    """What the language model reads of each medium, [N,D], of inputs that bring it encoded."""
    return inputs["mm_encoder_outputs"]["video"].pooler_output if "mm_encoder_outputs" in inputs else []


def embeddings_of(base: Any, batch: ChatBatch, features: Sequence[Tensor]) -> Tensor:
    """What the language model of a Video LLM reads of a batch, features in their places: [R,L,D]."""
    embeddings = base.get_input_embeddings()(batch.input_ids)
    return place_features(embeddings, batch.input_ids, base.config.image_token_id, features, batch.placeholders)


def zero_of(parameters: Iterable[Tensor]) -> Tensor:
    """A zero with gradients for all `parameters`: ranks wait for these, also where one has nothing to learn from."""
    return 0.0 * torch.stack([parameter.sum() for parameter in parameters]).sum()


@torch.no_grad()
def scale_gradients(parameters: Sequence[Tensor], factor: float) -> None:
    """Multiply the gradients of `parameters` in place."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
