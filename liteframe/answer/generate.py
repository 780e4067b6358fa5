"""From a prompt to an answer: what may be asked, greedy decoding, words as they are found."""

import copy
from collections.abc import Iterator
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteriaList, TextIteratorStreamer

from liteframe.models.vlm.chat import IMAGE, PLACEHOLDER, answer_ends, is_whole
from liteframe.models.vlm.family import CONTROL_TOKENS


def check_text(text: str, name: str = "question") -> None:
    """Refuse text that would become control or image tokens, or that no tokenizer takes.

    Raises:
        ValueError: names the token and, by `name`, the text.
    """
    if not is_whole(text):
        raise ValueError(f"the {name} holds half of a character, or bytes that are not UTF-8: {text!r}")
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


def greedy(model: Any, tokenizer: Any) -> Any:
    """The model with a generation_config of its own, which takes the most probable token until the answer ends.

    What a call does not say, `generate` takes from the model's: beams, banned n-grams, penalties of a checkpoint would
    change answers, and otherwise where the prompt is in the cache than where it comes as embeddings. The copy shares
    all parts of the model.
    """
    alone = copy.copy(model)
    ends, pad = answer_ends(model, tokenizer), tokenizer.pad_token_id
    alone.generation_config = GenerationConfig(do_sample=False, eos_token_id=ends, pad_token_id=pad)
    return alone


@torch.inference_mode()
def generate_text(model: Any, tokenizer: Any, request: dict[str, Any]) -> str:
    """The text of one greedy answer.

    Args:
        model: a Video LLM in eval mode.
        tokenizer: its tokenizer.
        request: arguments of `generate`: a prompt as embeddings, or ids of which all but the last are in the cache, and
            the most new tokens.
    """
    generated = greedy(model, tokenizer).generate(**request)[0]
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
                criteria = StoppingCriteriaList([stopped])
                greedy(model, tokenizer).generate(**request, streamer=streamer, stopping_criteria=criteria)
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
