"""A prompt for the language model: as a whole, or its beginning read into the KV cache as the video comes in.

A causal language model can read its prompt in parts (chunked prefill), and a LiteFrame encoder's clips are independent:
so the clips of a long video are read while later ones are still decoded and encoded, with the answer of the plain way,
and by the same kernels: flash attention over grouped queries.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from liteframe.answer.generate import check_length
from liteframe.answer.labels import VideoLines
from liteframe.models.vlm.attention import causal_in_parts
from liteframe.models.vlm.chat import PLACEHOLDER, question_prompt
from liteframe.models.vlm.placeholders import place_features
from liteframe.reduce.base import Tokens


class Prompt(NamedTuple):
    """Tokens [1,L], what the language model reads in their places [1,L,D], and positions [3,1,L] if it is told them."""

    ids: Tensor
    embeddings: Tensor
    position_ids: Tensor | None


class Prefill:
    """What of one prompt is in the cache.

    Args:
        model: a Video LLM.
        tokenizer: its tokenizer.
        lines: what it writes for slots.
        head: the prompt's text before the video.

    Attributes:
        ids: tokens of the prompt so far; the last of them may not have been read yet.
        cache: keys and values of those read.
    """

    def __init__(self, model: Any, tokenizer: Any, lines: VideoLines, head: str) -> None:
        self.model, self.tokenizer, self.lines, self.encoder = model, tokenizer, lines, lines.encoder
        self.cache = DynamicCache(config=model.config.text_config)
        self.ids: list[int] = []
        self._head, self._video_text, self._features = head, "", 0
        self._shown: Tokens | None = None

    def extend(self, shown: Tokens) -> None:
        """Read the slots that are new.

        Args:
            shown: the whole video so far; begins with what was read before.

        Raises:
            ValueError: the language model does not read so much.
        """
        fresh = shown.tokens[self._features :]  # [N,D]
        if not len(fresh):
            return
        text = self.lines.text(shown).removesuffix(self.lines.closing(shown))
        self._write(("" if self.ids else self._head) + text[len(self._video_text) :])
        check_length(shown.slots[-1][1] + 1, len(self.ids), 0, self.model)
        self._video_text, self._features, self._shown = text, len(shown.tokens), shown
        self._read(len(self.ids), fresh)

    def finish(self, question: str) -> None:
        """Read the end of the video and what follows it, except for the last token, from which the answer starts."""
        closing = "" if self._shown is None else self.lines.closing(self._shown)
        self._write(closing + question)
        self._read(len(self.ids) - 1, self.encoder.end_embedding())

    def fork(self) -> Prefill:
        """One that goes on from here and leaves this one as it is; the tensors are shared."""
        other = copy.copy(self)
        other.ids = list(self.ids)
        other.cache = fork_cache(self.cache)
        return other

    @property
    def read(self) -> int:
        """Number of tokens in the cache."""
        return self.cache.get_seq_length()

    @property
    def bytes(self) -> int:
        """Memory that keys, values and states take in the cache."""
        held = [value for layer in self.cache.layers for value in vars(layer).values()]
        held += [state for states in held if isinstance(states, dict) for state in states.values()]
        return sum(tensor.nbytes for tensor in held if isinstance(tensor, Tensor))

    def position_ids(self) -> Tensor | None:
        """Positions [3,1,L] of all tokens so far; None: the language model counts them."""
        positions = self.lines.position_ids(self.ids, self._shown)
        return None if positions is None else positions.to(self.model.device)

    def _write(self, text: str) -> None:
        """Parts are cut after control tokens, so that their tokens are those of the whole."""
        self.ids += self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    @torch.inference_mode()
    def _read(self, end: int, features: Tensor | None) -> None:
        ids = torch.tensor([self.ids[self.read : end]])  # [1,n]
        embeddings = embed(self.model, ids, self.encoder.placeholder_id, features)  # [1,n,D]
        language_model = self.model.model.language_model
        kept = {"use_cache": True, cache_name(language_model): self.cache}
        if (positions := self.position_ids()) is not None:
            kept["position_ids"] = positions[..., self.read : end]
        with causal_in_parts(language_model, embeddings.shape[1], self.read) as mask:
            language_model(inputs_embeds=embeddings, attention_mask=mask, **kept)


@torch.inference_mode()
def whole_prompt(
    model: Any, tokenizer: Any, lines: VideoLines, shown: Tokens | None, question: str, system: str | None = None
) -> Prompt:
    """A question about a video, for the language model.

    Args:
        model: a Video LLM.
        tokenizer: its tokenizer.
        lines: what it writes for slots.
        shown: what is shown of the video; None asks without one.
        question: without the video placeholder.
        system: a system message; None sends none.
    """
    head, tail = question_prompt(question, system).split(PLACEHOLDER)
    text = head + tail.removeprefix("\n") if shown is None else head + lines.text(shown) + tail
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False)["input_ids"]  # [1,L]
    features = None
    if shown is not None:
        end = lines.encoder.end_embedding()
        features = shown.tokens if end is None else torch.cat([shown.tokens, end.to(shown.tokens)])  # [N,D]
    positions = lines.position_ids(ids[0].tolist(), shown)
    positions = None if positions is None else positions.to(model.device)
    return Prompt(ids, embed(model, ids, lines.encoder.placeholder_id, features), positions)


def embed(model: Any, ids: Tensor, placeholder_id: int, features: Tensor | None) -> Tensor:
    """What the language model reads for tokens [1,n] on the CPU: [1,n,D], features [N,D] in their placeholders' places.

    Raises:
        ValueError: there are features, and not as many as placeholders.
    """
    embeddings: Tensor = model.get_input_embeddings()(ids.to(model.device))
    return embeddings if features is None else place_features(embeddings, ids, placeholder_id, [features])


def fork_cache(cache: DynamicCache) -> DynamicCache:
    """A cache that grows apart from this one; keys and values are shared, for a change puts new ones in their place."""
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in other.layers:
        for name, states in vars(layer).items():
            if isinstance(states, dict):  # of linear attention, which are written in place
                own = {key: state.clone() if isinstance(state, Tensor) else state for key, state in states.items()}
                setattr(layer, name, own)
    return other


def cache_name(language_model: Any) -> str:
    """What transformers calls the argument for the KV cache: `past_key_values`, from some 5.x on `cache`."""
    return "cache" if "cache" in inspect.signature(language_model.forward).parameters else "past_key_values"
