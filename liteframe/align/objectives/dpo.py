"""Direct preference optimization with a supervised part, as temporal preference optimization trains (TPO).

arXiv 2501.13919, section 3.3, with the supervised part as its authors' code has it: a mean over the chosen answers'
tokens, where a sum would outweigh the preference by the length of the answer.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from liteframe.align.batch import ChatBatch
from liteframe.align.objectives import AllReduce
from liteframe.align.objectives.sft import scale_gradients
from liteframe.align.reference import ReferenceLogProbs
from liteframe.models.vlm.chat import IGNORE

ROWS = 2  # of a pair: the chosen answer, and below it the rejected one


class DirectPreferenceOptimization:
    """Each pair's chosen answer shall gain more on the rejected one than it had where training started.

    The reference is the model as it starts: new LoRA layers change nothing, so it is the model without them, and
    where training goes on from an adapter, it is that adapter. Its log-probabilities are computed beside those of the
    model, without dropout, or come from where they are kept.

    Args:
        beta: how much a difference of log-probabilities counts.
        alpha: weight of the cross-entropy of the chosen answers.

    Attributes:
        kept: where the reference's log-probabilities are kept, if anywhere; set before the first batch.
        tokens_per_pair: tokens of the chosen answers of the global batch, a pair, to be set before each batch. The
            two parts are means over different things, and only their ratio is known before all pairs have been read.

    Raises:
        ValueError: beta is not positive or alpha is negative.
    """

    def __init__(self, beta: float, alpha: float) -> None:
        if not (beta > 0 and alpha >= 0):
            raise ValueError(f"model.beta={beta} must be above 0, model.alpha={alpha} at least 0")
        self.beta, self.alpha = beta, alpha
        self.kept: ReferenceLogProbs | None = None
        self.tokens_per_pair = 1.0
        self._reference: dict[str, Tensor] = {}
        self._sums: list[Tensor] = []

    def start_from(self, model: nn.Module) -> None:
        """Keep the trained weights as they are now: those of the reference."""
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._reference = {name: weight.detach().clone() for name, weight in trained.items()}

    def loss(self, model: nn.Module, inputs: dict[str, Any], batch: ChatBatch) -> tuple[Tensor, Tensor]:
        """Summed loss of the pairs, and the logits [2*B,K,vocabulary] of their answers; see Objective."""
        inputs = {**inputs, "logits_to_keep": batch.answers}
        compute = partial(self._reference_log_probs, model, inputs, batch)
        reference = compute() if self.kept is None else self.kept.of(batch, compute)  # [2*B]
        logits = model(**inputs).logits  # [2*B,K,vocabulary]
        answers, tokens = answer_log_probs(logits, batch.labels, batch.answers)  # [2*B]
        margin = margins(*pairs_of(answers), *pairs_of(reference), beta=self.beta)  # [B]
        preference, cross_entropy = -F.logsigmoid(margin).sum(), -pairs_of(answers)[0].sum()
        counts = torch.full_like(preference, len(margin)), pairs_of(tokens)[0].sum(), (margin > 0).sum(), margin.sum()
        self._sums.append(torch.stack([part.detach().double() for part in (preference, cross_entropy, *counts)]))
        return preference + self.alpha / self.tokens_per_pair * cross_entropy, logits

    def normalize(self, parameters: Sequence[Tensor], micro_batches: int, all_reduce: AllReduce) -> dict[str, float]:
        """Divide by the pairs of the global batch; see Objective."""
        none = torch.zeros(6, dtype=torch.float64, device=parameters[0].device)
        sums = all_reduce(torch.stack([none, *self._sums]).sum(0)).tolist()
        self._sums.clear()
        preference, cross_entropy, pairs, tokens, preferred, margin = sums
        if not pairs:
            return {}
        # Lightning has divided by the accumulation steps, and distributed training by the devices.
        scale_gradients(parameters, micro_batches / pairs)
        return {
            "train/loss": preference / pairs + self.alpha * cross_entropy / tokens,
            "train/preference_loss": preference / pairs,
            "train/answer_loss": cross_entropy / tokens,
            "train/preference_accuracy": preferred / pairs,
            "train/margin": margin / pairs,
        }

    @torch.no_grad()
    def _reference_log_probs(self, model: nn.Module, inputs: dict[str, Any], batch: ChatBatch) -> Tensor:
        # Tensors of their own: in place of the trained ones, autocast would take its casts of one for the other.
        self._reference = {name: weight.to(inputs["input_ids"].device) for name, weight in self._reference.items()}
        training = model.training
        model.eval()
        try:
            logits = functional_call(model, self._reference, (), inputs).logits
        finally:
            model.train(training)
        return answer_log_probs(logits, batch.labels, batch.answers)[0]


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    chosen_tokens: Tensor | int,
    beta: float,
    alpha: float,
) -> Tensor:
    """The loss of a batch of pairs: mean of -log sigmoid(margin), and alpha times the cross-entropy of a chosen token.

    Args:
        chosen: [B], summed log-probabilities of the chosen answers.
        rejected: [B], of the rejected ones.
        reference_chosen: [B], of the chosen ones under the reference.
        reference_rejected: [B], of the rejected ones under it.
        chosen_tokens: tokens of the chosen answers, [B] or all together.
        beta: see margins.
        alpha: weight of the cross-entropy.

    Returns:
        A scalar.
    """
    margin = margins(chosen, rejected, reference_chosen, reference_rejected, beta=beta)
    cross_entropy = -chosen.sum() / torch.as_tensor(chosen_tokens, device=chosen.device).sum()
    return -F.logsigmoid(margin).mean() + alpha * cross_entropy


def margins(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> Tensor:
    """By how much each pair's chosen answer has gained on the rejected one, times beta: [B] each -> [B]."""
    return beta * ((chosen - reference_chosen) - (rejected - reference_rejected))


def answer_log_probs(logits: Tensor, labels: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of whole answers.

    Args:
        logits: [R,K,vocabulary] at `positions`.
        labels: [R,L], -100 where nothing is learned.
        positions: [K], see ChatBatch.answers.

    Returns:
        Their sum over the tokens of each row's answer, float32 [R], and how many these are, [R].
    """
    targets = labels[:, 1:][:, positions]  # [R,L] -> [R,K]
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none"
    ).view_as(targets)  # [R,K]
    return -losses.sum(1), (targets != IGNORE).sum(1)


def pairs_of(rows: Tensor) -> tuple[Tensor, Tensor]:
    """What belongs to rows [2*B] of pairs -> of the chosen answers [B], and of the rejected ones [B]."""
    chosen, rejected = rows.view(-1, ROWS).unbind(1)
    return chosen, rejected
