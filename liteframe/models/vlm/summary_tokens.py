"""Summary tokens of a language model: their embedding, and how their queries, keys and values differ from others'.

Video-XL (arXiv 2409.14485) gives them projections of their own, which begin as copies of the model's; here they have
low-rank updates of them, which begin at zero, and the model's own for all else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liteframe.models.vlm.attention import takes_causal_masks

MEMORY = "summary"  # name of the memory that reads with them
PROJECTIONS = ("q_proj", "k_proj", "v_proj")
Places = tuple[Tensor, Tensor]  # rows and columns, int64 [K] each
# Of what this thread reads: another may generate with the same model meanwhile.
_reading: ContextVar[Places | None] = ContextVar("_reading", default=None)


@dataclass
class SummarySettings:
    """How a language model learns to summarize segments of a video.

    Attributes:
        rank: of the updates of summary tokens' queries, keys and values.
        segments: slots of a segment; "changes" ends them where the video changes, after 2 to 16.
        ratios: tokens that a summary token stands for: for each part of the run, all equally long, the values of which
            each segment draws one; or "dynamic", by how much a segment changes.
        labels: whether labels of slots "keep" their entries or "drop" them with the slot's own.
        train_lora: train the LoRA layers of the language model, too.
    """

    rank: int = 16
    segments: int | Literal["changes"] = 8
    ratios: list[list[int]] | Literal["dynamic"] = field(default_factory=lambda: [[2, 4], [8], [16]])
    labels: Literal["keep", "drop"] = "keep"
    train_lora: bool = True

    def __post_init__(self) -> None:
        """Refuse values that mean nothing; segments are checked by what cuts them."""
        stages = [[1]] if self.ratios == "dynamic" else self.ratios
        if self.rank < 1 or not stages or not all(stage and min(stage) >= 1 for stage in stages):
            raise ValueError(
                f"model.summary: rank >= 1 and ratios of at least 1 in lists that are not empty are needed, got {self}"
            )


class LowRank(nn.Module):
    """What is added to a projection, zero at the start: [...,in] -> [...,out]."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(rank, inputs), a=5**0.5))
        self.up = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, values: Tensor) -> Tensor:
        """Its value, in the type of the weights."""
        return F.linear(F.linear(values.to(self.down.dtype), self.down), self.up)


class SummaryTokens(nn.Module):
    """What a language model has for summary tokens; it belongs to `language_model.summary_tokens`.

    Args:
        language_model: of the qwen2 kind; its projections may carry LoRA layers.
        settings: of the training.
        start: [D], the embedding to begin with.

    Attributes:
        places: where they stand in what is read, whichever thread reads: activations that are checkpointed are computed
            again by a thread of autograd. For training; a session says it with `reading`.
    """

    def __init__(self, language_model: Any, settings: SummarySettings, start: Tensor) -> None:
        super().__init__()
        self.settings = settings
        self.places: Places | None = None
        self.embedding = nn.Parameter(start.detach().float().clone())
        self.updates = nn.ModuleList(
            nn.ModuleDict(
                {
                    name: LowRank(projection.in_features, projection.out_features, settings.rank)
                    for name in PROJECTIONS
                    if (projection := getattr(layer.self_attn, name)) is not None
                }
            )
            for layer in language_model.layers
        )

    @contextmanager
    def reading(self, rows: Tensor, columns: Tensor) -> Iterator[None]:
        """Within, what this thread lets the language model read has summary tokens there."""
        token = _reading.set((rows, columns))
        try:
            yield
        finally:
            _reading.reset(token)

    def _update(self, layer: int, name: str, _: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """A hook of a projection, [R,L,in] -> [R,L,out]: adds the update where summary tokens stand."""
        places = _reading.get() or self.places
        if places is None or not len(places[0]):
            return None
        updates: Any = self.updates[layer]
        return output.index_put(places, output[places] + updates[name](given[0][places]).to(output.dtype))


def add_summary_tokens(model: Any, processor: Any, settings: SummarySettings) -> SummaryTokens:
    """Give the language model of a Video LLM summary tokens, on its device; they begin as the end of a turn.

    Raises:
        ValueError: no mask of theirs can be given to the language model, or the tokenizer has no end of a turn.
    """
    language_model = model.model.language_model
    if not takes_causal_masks(language_model.config):
        raise ValueError(
            f"summary tokens need a language model of the qwen2 or qwen3 kind with full attention in all layers, by "
            f"torch's own kernels (sdpa); this one is a {language_model.config.model_type}"
        )
    start = end_of_turn(model, processor.tokenizer)
    tokens = SummaryTokens(language_model, settings, start).to(start.device)
    language_model.summary_tokens = tokens
    for number, layer in enumerate(language_model.layers):
        for name in PROJECTIONS:
            getattr(layer.self_attn, name).register_forward_hook(partial(tokens._update, number, name))
    return tokens


def end_of_turn(model: Any, tokenizer: Any) -> Tensor:
    """The embedding [D] that tokens which a Video LLM learns begin as.

    Raises:
        ValueError: the tokenizer has none.
    """
    number = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
    if number is None:
        raise ValueError("the tokenizer names no eos and no bos token, one of which learned tokens begin as")
    return model.get_input_embeddings().weight[number]


def summary_tokens_of(model: Any) -> SummaryTokens | None:
    """Those of a Video LLM's language model, if it has any."""
    return getattr(model.model.language_model, "summary_tokens", None)
