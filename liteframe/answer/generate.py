"""From a prompt to an answer: what may be asked, greedy decoding, words as they are found."""

from collections.abc import Iterator
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList, TextIteratorStreamer

from liteframe.models.vlm.chat import IMAGE, PLACEHOLDER
from liteframe.models.vlm.family import CONTROL_TOKENS


def check_text(text: str, name: str = "question") -> None:
    """Refuse text that would become control or image tokens.

    Raises:
        ValueError: names the token and, by `name`, the text.
    """
    for token in (*CONTROL_TOKENS, PLACEHOLDER, IMAGE):
        if token in text:
            raise ValueError(
                f"the {name} holds {token!r}, which is a control token or placeholder; leave it out: {text!r}"
            )


def check_length(frames: int, tokens: int, max_new_tokens: int, model: Any) -> None:
    """Refuse what the language model cannot read.

    Raises:
        ValueError: prompt and answer together are too long.
    """
    limit = model.config.text_config.max_position_embeddings
    if tokens + max_new_tokens > limit:
        raise ValueError(
            f"{frames} frames and the question take {tokens} tokens, with an answer of up to {max_new_tokens} "
            f"more than the {limit} that the language model reads; use fewer frames or a shorter answer"
        )


def greedy(tokenizer: Any, max_new_tokens: int) -> dict[str, Any]:
    """Arguments of `generate` for an answer that ends where its turn ends."""
    return {
        "do_sample": False,
        "max_new_tokens": max_new_tokens,
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "pad_token_id": tokenizer.pad_token_id,
    }


@torch.inference_mode()
def generate_text(model: Any, tokenizer: Any, request: dict[str, Any]) -> str:
    """The text of one greedy answer.

    Args:
        model: a Video LLM in eval mode.
        tokenizer: its tokenizer.
        request: arguments of `generate` for one prompt: embeddings, or ids of which all but the last are in the cache.
    """
    generated = model.generate(**request)[0]
    start = request["input_ids"].shape[1] if "input_ids" in request else 0  # of embeddings, only the answer comes back
    return tokenizer.decode(generated[start:], skip_special_tokens=True).strip()


def stream_text(model: Any, tokenizer: Any, request: dict[str, Any]) -> Iterator[str]:
    """As generate_text, piece by piece as the words are found; closing the iterator stops the search for more."""
    # generate hands an empty prompt to the streamer when it starts from embeddings.
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    failures: list[BaseException] = []
    stop = Event()

    def stopped(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full((len(ids),), stop.is_set(), device=ids.device)

    def generate() -> None:
        try:
            with torch.inference_mode():
                model.generate(**request, streamer=streamer, stopping_criteria=StoppingCriteriaList([stopped]))
        except BaseException as error:  # raised again in the caller's thread
            failures.append(error)
            streamer.end()

    thread = Thread(target=generate, daemon=True)
    thread.start()
    try:
        yield from (piece for piece in streamer if piece)
    finally:
        stop.set()  # a thread that still computes when Python ends would abort it
        thread.join()
    if failures:
        raise failures[0]
