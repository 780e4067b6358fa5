"""Next-token loss on answers, as a sum with its count: it is normalized once, over the whole global batch."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from liteframe.models.vlm.chat import IGNORE


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


def answer_positions(labels: Tensor) -> Tensor:
    """Positions [K] whose next token is an answer token in any row of labels [B,L].

    Logits are needed there only; elsewhere they would fill the memory (vocabulary x sequence length).
    """
    return (labels[:, 1:] != IGNORE).any(0).nonzero().squeeze(1)


def answer_loss(logits: Tensor, labels: Tensor, positions: Tensor) -> AnswerLoss:
    """Cross-entropy of the next tokens.

    Args:
        logits: [B,K,vocabulary] at `positions`.
        labels: [B,L], -100 where nothing is learned.
        positions: [K] from answer_positions.
    """
    targets = labels[:, 1:][:, positions]
    learned = targets != IGNORE
    total = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    correct = (logits.argmax(-1) == targets) & learned
    return AnswerLoss(total, learned.sum(), correct.sum())


@torch.no_grad()
def scale_gradients(parameters: Sequence[Tensor], factor: float) -> None:
    """Multiply the gradients of `parameters` in place."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
