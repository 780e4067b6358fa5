"""Encode a video clip by clip while the language model already reads the earlier clips: less waiting, same answer.

Decoding (CPU), encoding and prefill of one video need each other only clip by clip, because a LiteFrame encoder's clips
are independent and a causal language model can read its prompt in parts (chunked prefill into the KV cache).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from queue import Empty, Full, Queue
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from liteframe.answer.generate import check_length, greedy
from liteframe.models.vlm.chat import PLACEHOLDER, question_prompt

# Clips that may be encoded and not yet read: bounds memory.
AHEAD = 8


@torch.inference_mode()
def prefill_overlapped(
    model: Any,
    processor: Any,
    clips: Iterable[np.ndarray],
    frames: int,
    question: str,
    *,
    system: str | None = None,
    max_new_tokens: int = 32,
) -> dict[str, Any]:
    """Fill the KV cache with a video and a question, except for the last token, from which an answer starts.

    Args:
        model: a Video LLM with a LiteFrame encoder, in eval mode.
        processor: the processor that fits it.
        clips: uint8 [t,H,W,3] each, the video's frames in order, cut into clips of the encoder's `clip_frames`; read in
            a thread of its own, so reading them from a file overlaps as well.
        frames: how many frames the clips hold together.
        question: without the video placeholder.
        system: a system message; None sends none.
        max_new_tokens: longest answer.

    Returns:
        Arguments of `generate` for a greedy answer: input_ids [1,L], attention_mask, past_key_values and the rest.

    Raises:
        ValueError: the clips hold another number of frames, or prompt and answer are too long.
    """
    ids, mask = _prompt(model, processor, frames, question, system, max_new_tokens)
    places = mask[0].nonzero().flatten().tolist()
    cache = DynamicCache(config=model.config.text_config)
    embed, language = model.get_input_embeddings(), model.model.language_model
    done = read = 0  # tokens in the cache; image tokens among them
    ending = model.model.end_embedding()
    most = len(places) - (0 if ending is None else 1)
    for features in _encoded(model, processor, clips):
        read += len(features)
        if read > most:
            raise ValueError(f"the clips hold more than the {frames} frames they were said to")
        end = places[read - 1] + 1
        embeds = embed(ids[:, done:end]).masked_scatter(mask[:, done:end, None], features.to(embed.weight.dtype))
        language(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
        done = end
    if read != most:
        raise ValueError(f"the clips hold fewer than the {frames} frames they were said to")
    rest = embed(ids[:, done:-1])
    if ending is not None:
        rest = rest.masked_scatter(mask[:, done:-1, None], ending.to(rest))
    language(inputs_embeds=rest, past_key_values=cache, use_cache=True)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "past_key_values": cache,
        **greedy(processor, max_new_tokens),
    }


def _prompt(
    model: Any, processor: Any, frames: int, question: str, system: str | None, max_new_tokens: int
) -> tuple[Tensor, Tensor]:
    """Token ids [1,L] and where image tokens are, bool [1,L]."""
    video = processor.video_text(processor.slots(frames, *processor.frame_size))
    text = question_prompt(question, system).replace(PLACEHOLDER, video, 1)
    ids = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"].to(model.device)
    check_length(frames, ids.shape[1], max_new_tokens, model)
    return ids, ids == model.config.image_token_id


def _encoded(model: Any, processor: Any, clips: Iterable[np.ndarray]) -> Iterator[Tensor]:
    """Features [tokens,D] of clips that are ready, as many at a time as there are."""
    queue: Queue[Any] = Queue(AHEAD)
    stop = threading.Event()
    thread = threading.Thread(target=_produce, args=(model, processor, clips, queue, stop), daemon=True)
    thread.start()
    try:
        ended = False
        while not ended:
            ready = [queue.get()]
            while True:
                try:
                    ready.append(queue.get_nowait())
                except Empty:
                    break
            ended = not isinstance(ready[-1], tuple)
            failure = ready.pop() if ended else None
            if ready:
                yield torch.cat([_arrived(*item) for item in ready])
            if failure is not None:
                raise failure
    finally:
        stop.set()
        thread.join()


def _produce(model: Any, processor: Any, clips: Iterable[np.ndarray], queue: Queue[Any], stop: threading.Event) -> None:
    """Encode on a stream of its own; the last thing put is None, or the error that ended it."""
    ending: BaseException | None = None
    stream = torch.cuda.Stream(model.device) if model.device.type == "cuda" else None
    try:
        with torch.inference_mode(), torch.cuda.stream(stream):
            for frames in clips:
                pixels = processor.pixels(frames).to(model.device)
                features = model.model.get_video_features(pixels, final=False).pooler_output[0]
                if not _put(queue, (features, None if stream is None else stream.record_event()), stop):
                    return
    except BaseException as error:  # raised again where the features are used
        ending = error
    _put(queue, ending, stop)


def _put(queue: Queue[Any], item: Any, stop: threading.Event) -> bool:
    """Put unless nobody will take it any more."""
    while not stop.is_set():
        try:
            queue.put(item, timeout=0.1)
            return True
        except Full:
            continue
    return False


def _arrived(features: Tensor, event: Any) -> Tensor:
    """Features for use on the current stream."""
    if event is not None:
        current = torch.cuda.current_stream(features.device)
        current.wait_event(event)
        features.record_stream(current)
    return features
