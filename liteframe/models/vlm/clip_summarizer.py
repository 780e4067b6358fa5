"""What sums up the clips of a video in turn, and says which of them a question is about (VideoStreaming).

arXiv 2405.16009, sections 3.1 and 3.2, whose authors have released no code: a small causal language model reads a clip
behind the memory of those before it. Here it is a copy of the first layers of the Video LLM's own language model.

Shapes: B clips, N tokens of a slot and of a memory, n tokens of a row, D channels of the language model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liteframe.models.vlm.attention import FULL, takes_causal_masks
from liteframe.models.vlm.processor import LiteFrameProcessor
from liteframe.models.vlm.summary_tokens import end_of_turn

MEMORY = "learned_clips"  # name of the memory that reads with it


@dataclass
class ClipSettings:
    """How a language model learns to sum up clips, and to choose among them by the question.

    Attributes:
        layers: that the summarizer has, the first of the language model; null takes a quarter, and at least 2.
        slots_per_clip: slots that are a clip.
        chosen: clips that a question chooses.
        newest: clips that are shown whatever is asked.
        propagate: whether the memory of a clip is read before the next clip, and the last before the question.
        temperature: of the cosine between question and clip.
        kl_weight: of the divergence from where an answer is to be seen, for rows that say so (`span`).
        kl_warmup: share of the run's steps, at its begin, in which nothing else is learned.
        train_lora: train the LoRA layers of the language model, too.
    """

    layers: int | None = None
    slots_per_clip: int = 4
    chosen: int = 4
    newest: int = 1
    propagate: bool = True
    temperature: float = 0.1
    kl_weight: float = 1.0
    kl_warmup: float = 0.0
    train_lora: bool = True

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        counts = (self.layers is None or self.layers >= 1) and self.slots_per_clip >= 1 and self.chosen >= 1
        if not (counts and self.newest >= 0 and self.temperature > 0 and self.kl_weight >= 0):
            raise ValueError(
                "model.learned_clips: layers, slots_per_clip and chosen of at least 1, temperature above 0, newest and "
                f"kl_weight of at least 0 are needed, got {self}"
            )
        if not 0 <= self.kl_warmup < 1 or (self.kl_warmup and not self.kl_weight):
            raise ValueError(
                f"model.learned_clips.kl_warmup is {self.kl_warmup}: a share of the run, below 1, in which kl_weight "
                f"({self.kl_weight}) alone counts"
            )


class ClipSummarizer(nn.Module):
    """Sums up clips and places questions among them; it belongs to `language_model.clip_summarizer`.

    A clip's memory is the mean of its slots at each place, plus a linear map, zero at the start, of what the summarizer
    makes of it. So untrained memories are those of `clips`.

    Args:
        language_model: of the qwen2 or qwen3 kind; its layers may carry LoRA, whose update the copy has in its weights.
        settings: of the training.
        slot_tokens: N.
        start: [D], what the indicator begins as.
    """

    def __init__(self, language_model: Any, settings: ClipSettings, slot_tokens: int, start: Tensor) -> None:
        super().__init__()
        self.settings = settings
        whole = len(language_model.layers)
        count = min(max(2, whole // 4), whole) if settings.layers is None else settings.layers
        if count > whole:
            raise ValueError(f"model.learned_clips.layers={count}: the language model has {whole}")
        self.reader = first_layers(language_model, count)
        width, dtype = start.shape[-1], next(self.reader.parameters()).dtype
        self.summary = nn.Parameter(torch.zeros(slot_tokens, width, dtype=dtype))  # added to the mean of a clip
        self.indicator = nn.Parameter(start.detach().clone().to(dtype))
        self.residual = nn.Linear(width, width, bias=False, dtype=dtype)
        nn.init.zeros_(self.residual.weight)

    def clips(
        self, before: Sequence[Tensor], slots: Sequence[Tensor], means: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Read clips, each behind what comes before it, then its summary tokens, then its indicator.

        Args:
            before: [n,D] of each clip: the text of its time, and the memory of the clip before.
            slots: [n,D], tokens of its slots.
            means: [N,D], their mean at each place.

        Returns:
            Memories [B,N,D], and indicators [B,D], which say what the clips are about.
        """
        dtype = self.summary.dtype
        places = torch.tensor([len(one) + len(other) for one, other in zip(before, slots, strict=True)])
        mean = torch.stack([one.to(dtype) for one in means])  # [B,N,D]
        rows = [
            torch.cat([text.to(dtype), clip.to(dtype), own + self.summary, self.indicator[None]])
            for text, clip, own in zip(before, slots, mean, strict=True)
        ]
        read = self._read(rows, places[:, None] + torch.arange(len(self.summary) + 1))  # [B,N+1,D]
        return mean + self.residual(read[:, :-1]), read[:, -1]

    def questions(self, rows: Sequence[Tensor]) -> Tensor:
        """Indicators [B,D] of questions: rows [n,D] are the memory of the newest clip and the question's words."""
        lengths = torch.tensor([[len(row)] for row in rows])
        ended = [torch.cat([row.to(self.indicator.dtype), self.indicator[None]]) for row in rows]
        return self._read(ended, lengths)[:, 0]

    def _read(self, rows: Sequence[Tensor], places: Tensor) -> Tensor:
        """What stands at places [B,K] of rows [n,D] once they are read: [B,K,D]; padding is behind all of them."""
        longest = max(map(len, rows))
        inputs = torch.stack([F.pad(row, (0, 0, 0, longest - len(row))) for row in rows])  # [B,n,D]
        read = self.reader(inputs_embeds=inputs, attention_mask={FULL: None}, use_cache=False).last_hidden_state
        return read[torch.arange(len(rows), device=read.device)[:, None], places.to(read.device)]


def first_layers(language_model: Any, count: int) -> Any:
    """A language model of copies of the first layers, with the norm at its end, that reads embeddings only."""
    config = copy.deepcopy(language_model.config)
    config.num_hidden_layers, config.layer_types = count, list(config.layer_types)[:count]
    with torch.device("meta"):
        model = type(language_model)(config)
    del model.embed_tokens
    model.layers = nn.ModuleList(_without_lora(layer) for layer in language_model.layers[:count])
    model.norm, model.rotary_emb = copy.deepcopy(language_model.norm), copy.deepcopy(language_model.rotary_emb)
    return model


@torch.no_grad()
def _without_lora(layer: nn.Module) -> nn.Module:
    """A copy of a layer, with the update of its LoRA layers in its weights."""
    copied = copy.deepcopy(layer)
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "get_delta_weight"):
                lora: Any = child
                plain = lora.get_base_layer()
                plain.weight += lora.get_delta_weight("default").to(plain.weight.dtype)
                setattr(parent, name, plain)
    return copied


def time_text(before: float | None, begin: float, end: float) -> str:
    """What stands before a clip: up to when the past reaches, and when it is shown, in seconds from the first frame on.

    Args:
        before: end of the past, or None without one.
        begin: of the clip.
        end: of the clip.
    """
    first, last, past = (f"{max(0.0, time):.1f}".removesuffix(".0") for time in (begin, end, before or 0.0))
    return f"{first}-{last} s: " if before is None else f"0-{past} s, {first}-{last} s: "


def add_clip_summarizer(model: Any, processor: Any, settings: ClipSettings) -> ClipSummarizer:
    """Give the language model of a Video LLM a clip summarizer, on its device.

    Raises:
        ValueError: it has no LiteFrame encoder, or not the positions, the attention or the layers for a summarizer, or
            its slots have no fixed number of tokens.
    """
    language_model, kind = model.model.language_model, model.config.model_type
    if not isinstance(processor, LiteFrameProcessor):
        raise ValueError(f"a clip summarizer reads the tokens of a LiteFrame encoder, which this {kind} has not")
    if processor.mrope is not None:
        raise ValueError(f"a clip summarizer numbers what it reads on one axis, and positions of a {kind} have three")
    if not takes_causal_masks(language_model.config):
        raise ValueError(
            f"a clip summarizer needs a language model of the qwen2 or qwen3 kind with full attention in all layers, "
            f"by torch's own kernels (sdpa); this one is a {language_model.config.model_type}"
        )
    if processor.resize == "aspect":
        raise ValueError(
            "a clip summarizer has summary tokens of one number, and frames in their own aspect ratio have not; take "
            "an encoder that squashes or crops them"
        )
    start = end_of_turn(model, processor.tokenizer)
    slot_tokens = processor.tokens_per_slot(*processor.frame_size)
    summarizer = ClipSummarizer(language_model, settings, slot_tokens, start).to(start.device)
    language_model.clip_summarizer = summarizer
    return summarizer
