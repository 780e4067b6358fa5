"""How the language model of a session reads on: text, slots, questions, and what its attention asks meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from liteframe.answer.key_values import LABEL, TEXT, VIDEO, KeyValues
from liteframe.answer.labels import VideoLines
from liteframe.answer.positions import Positions
from liteframe.answer.prefill import cache_name, embed
from liteframe.models.vlm.attention import FULL
from liteframe.reduce.base import Tokens


@contextmanager
def watch_queries(language_model: Any, rotated: bool = True) -> Iterator[list[Tensor]]:
    """Collect the queries of every layer while the language model reads, float32 [heads,n,d].

    They are computed again from what each attention is given, whichever kernel computes attention.

    Args:
        language_model: of the qwen2 kind.
        rotated: after the rotation by their positions, or before it.
    """
    collected: list[Tensor] = []

    def before(attention: Any, _: Any, given: dict[str, Any]) -> None:
        queries = attention.q_proj(given["hidden_states"])[0]  # [n,heads*d]
        queries = queries.unflatten(-1, (-1, attention.head_dim))
        if (norm := getattr(attention, "q_norm", None)) is not None:
            queries = norm(queries)
        queries = queries.transpose(0, 1).float()  # [heads,n,d]
        if rotated:
            cos, sin = (values[0].float() for values in given["position_embeddings"])  # [n,d]
            one, other = queries.chunk(2, -1)
            queries = queries * cos + torch.cat([-other, one], -1) * sin
        collected.append(queries)

    hooks = [layer.self_attn.register_forward_pre_hook(before, with_kwargs=True) for layer in language_model.layers]
    try:
        yield collected
    finally:
        for hook in hooks:
            hook.remove()


class Reader:
    """How the language model of a session reads: text, slots, questions.

    Args:
        model: a Video LLM.
        tokenizer: its tokenizer.
        lines: what it writes for slots.
        head: the prompt's text before the video.
        policy: what becomes of positions.
    """

    def __init__(self, model: Any, tokenizer: Any, lines: VideoLines, head: str, policy: Positions) -> None:
        self.model, self.tokenizer, self.lines, self.head, self.policy = model, tokenizer, lines, head, policy

    def check_entries(self, who: str, remedy: str) -> None:
        """Make sure that all layers keep keys and values of all that they have read.

        Raises:
            ValueError: some do not; `who` needs them, and `remedy` does not.
        """
        config = self.model.config
        if others := set(getattr(config.text_config, "layer_types", None) or ()) - {FULL}:
            raise ValueError(
                f"{who} needs keys and values of all that was read, which {', '.join(sorted(others))} of a "
                f"{config.model_type} does not keep; take {remedy}"
            )

    def begin(self) -> KeyValues:
        """What is read before the first slot."""
        empty = self.nothing()
        self.read_text(empty, self.head, TEXT)
        return empty

    def nothing(self) -> KeyValues:
        """What has read nothing yet."""
        return KeyValues(self.model, self.policy, self.lines.mrope)

    def read_slot(self, past: KeyValues, slot: Tokens, number: int) -> None:
        """Read one slot, of this number in the stream, with its label."""
        opening, text = self.lines.alone(slot, number == 0)
        if opening:
            self.read_text(past, opening, TEXT)
        self.read_text(past, text, LABEL, slot, number)

    def read_text(self, past: KeyValues, text: str, kind: int, slot: Tokens | None = None, number: int = -1) -> None:
        """Read text, in which the tokens of a slot take the places of the placeholders."""
        ids = self.ids(text)
        kinds = torch.full((len(ids),), kind)
        kinds[torch.tensor(ids) == self.lines.encoder.placeholder_id] = VIDEO
        features = None if slot is None else slot.tokens
        places = None if slot is None else self.lines.places(slot)
        past.read(self.embed(ids, features), kinds, number, places=places)

    def question(self, past: KeyValues, text: str, max_new_tokens: int) -> dict[str, Any]:
        """Arguments of `generate` for an answer to a text behind the video; reads all of it but the last token.

        Args:
            past: is changed.
            text: what follows the video.
            max_new_tokens: longest answer.

        Raises:
            ValueError: text and answer do not fit the language model's range.
        """
        ids = self.ids(self.lines.closing() + text)
        past.make_room(len(ids) + max_new_tokens, 0)
        past.read(
            self.embed(ids[:-1], self.lines.encoder.end_embedding()), torch.full((len(ids) - 1,), TEXT), reserve=0
        )
        device = self.model.device
        shape = (1, len(past) + 1)  # only the last is read: what is in the cache is passed as numbers of equal count
        positions = torch.full(shape, past.free, device=device)
        return {
            "input_ids": torch.full(shape, ids[-1], device=device),
            "attention_mask": torch.ones(shape, dtype=torch.long, device=device),
            "position_ids": positions if past.mrope is None else positions.expand(3, *shape),
            cache_name(past.language_model): past.cache,
            "max_new_tokens": max_new_tokens,
        }

    def ids(self, text: str) -> list[int]:
        """Tokens of a text."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def embed(self, ids: list[int], features: Tensor | None) -> Tensor:
        """What the language model reads for tokens [n]: [1,n,D], features [N,D] in their placeholders' places."""
        return embed(self.model, torch.tensor([ids]), self.lines.encoder.placeholder_id, features)
