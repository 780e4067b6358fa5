"""A prompt for the language model: as a whole, or its beginning read into the KV cache as the video comes in.

A causal language model can read its prompt in parts (chunked prefill), and a LiteFrame encoder's clips are independent:
so the clips of a long video are read while later ones are still decoded and encoded, with the answer of the plain way,
and by the same kernels: flash attention over grouped queries.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from liteframe.answer.generate import check_length
from liteframe.answer.labels import VideoLines
from liteframe.models.vlm.attention import causal_in_parts
from liteframe.models.vlm.chat import PLACEHOLDER, question_prompt
from liteframe.models.vlm.placeholders import place_features
from liteframe.reduce.base import Tokens


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
        text = self.lines.text(shown)
        self._write(("" if self.ids else self._head) + text[len(self._video_text) :])
        check_length(shown.slots[-1][1] + 1, len(self.ids), 0, self.model)
        # One that ends the video may stand after the last slot's, and is read when the video has ended.
        places = [place for place in range(self.read, len(self.ids)) if self.ids[place] == self.encoder.placeholder_id]
        self._read(places[len(fresh) - 1] + 1, fresh)
        self._video_text, self._features = text, len(shown.tokens)

    def finish(self, question: str) -> None:
        """Read the end of the video and what follows it, except for the last token, from which the answer starts."""
        self._write(question)
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
        """Memory that keys and values take in the cache."""
        layers = [layer for layer in self.cache.layers if layer.get_seq_length()]
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)

    def _write(self, text: str) -> None:
        """Parts are cut after control tokens, so that their tokens are those of the whole."""
        self.ids += self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    @torch.inference_mode()
    def _read(self, end: int, features: Tensor | None) -> None:
        ids = torch.tensor([self.ids[self.read : end]])  # [1,n]
        embeddings = embed(self.model, ids, self.encoder.placeholder_id, features)  # [1,n,D]
        language_model = self.model.model.language_model
        kept = {"use_cache": True, cache_name(language_model): self.cache}
        with causal_in_parts(language_model, embeddings.shape[1], self.read) as mask:
            language_model(inputs_embeds=embeddings, attention_mask=mask, **kept)


@torch.inference_mode()
def whole_prompt(
    model: Any, tokenizer: Any, lines: VideoLines, shown: Tokens | None, question: str, system: str | None = None
) -> tuple[Tensor, Tensor]:
    """Tokens [1,L] of a question about a video, and what the language model reads in their places, [1,L,D].

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
    return ids, embed(model, ids, lines.encoder.placeholder_id, features)


def embed(model: Any, ids: Tensor, placeholder_id: int, features: Tensor | None) -> Tensor:
    """What the language model reads for tokens [1,n] on the CPU: [1,n,D], features [N,D] in their placeholders' places.

    Raises:
        ValueError: there are features, and not as many as placeholders.
    """
    embeddings: Tensor = model.get_input_embeddings()(ids.to(model.device))
    return embeddings if features is None else place_features(embeddings, ids, placeholder_id, [features])


def fork_cache(cache: DynamicCache) -> DynamicCache:
    """A cache that grows apart from this one; the tensors are shared, for a change puts new ones in their place."""
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other


def cache_name(language_model: Any) -> str:
    """What transformers calls the argument for the KV cache: `past_key_values`, from some 5.x on `cache`."""
    return "cache" if "cache" in inspect.signature(language_model.forward).parameters else "past_key_values"
