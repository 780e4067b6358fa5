"""Ask a Video LLM several questions about one video: the video is encoded once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import StoppingCriteriaList, TextIteratorStreamer

from liteframe.models.vlm.chat import PLACEHOLDER, question_prompt
from liteframe.models.vlm.family import family_of
from liteframe.models.vlm.processor import LiteFrameProcessor


@torch.inference_mode()
def answer(
    model: Any,
    processor: Any,
    frames: np.ndarray,
    questions: str | Sequence[str],
    *,
    max_new_tokens: int = 32,
    system: str | None = None,
) -> list[str]:
    """Greedy answers, one a question; each question is asked on its own.

    Args:
        model: an InternVL of transformers, or one with a LiteFrame encoder, in eval mode.
        processor: the processor that fits it.
        frames: uint8 [T,H,W,3].
        questions: one or several; without the video placeholder.
        max_new_tokens: longest answer.
        system: a system message; None sends none.

    Raises:
        ValueError: prompt and answer are longer than the language model reads.
    """
    questions = [questions] if isinstance(questions, str) else list(questions)
    generated = model.generate(
        **plain_request(model, processor, frames, questions, max_new_tokens=max_new_tokens, system=system)
    )
    return [text.strip() for text in processor.tokenizer.batch_decode(generated, skip_special_tokens=True)]


def stream_answer(model: Any, processor: Any, request: dict[str, Any]) -> Iterator[str]:
    """Generate piece by piece as the words are found; closing the iterator stops the search for more.

    Args:
        model: as for answer.
        processor: as for answer.
        request: arguments of `generate` for one prompt (see `greedy`).
    """
    # generate hands an empty prompt to the streamer when it starts from embeddings.
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
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


def greedy(processor: Any, max_new_tokens: int) -> dict[str, Any]:
    """Arguments of `generate` for an answer that ends where its turn ends."""
    return {
        "do_sample": False,
        "max_new_tokens": max_new_tokens,
        "eos_token_id": processor.tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "pad_token_id": processor.tokenizer.pad_token_id,
    }


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


@dataclass(frozen=True)
class EncodedVideo:
    """What stands for a video in a prompt, the token of that which is replaced by features, the features, and frames.

    Attributes:
        text: with as many placeholder tokens as there are features.
        token: id of the placeholder.
        features: [image tokens, text hidden size].
        frames: how many were encoded.
    """

    text: str
    token: int
    features: Tensor
    frames: int


def prepare_frames(processor: Any, frames: np.ndarray) -> Tensor:
    """Resize and normalize as the model wants it: uint8 [T,H,W,3] -> float32 [T,3,h,w]."""
    if isinstance(processor, LiteFrameProcessor):
        return processor.pixels(frames)
    video = torch.as_tensor(frames).permute(0, 3, 1, 2).contiguous()
    inputs = processor.video_processor(videos=[video], return_tensors="pt", do_sample_frames=False)
    return inputs["pixel_values_videos"][0]


@torch.inference_mode()
def encode_pixels(model: Any, processor: Any, pixels: Tensor) -> EncodedVideo:
    """Encode a video once, for any number of questions.

    Args:
        model: as for answer.
        processor: as for answer.
        pixels: float32 [T,3,h,w], of prepare_frames.
    """
    pixels = pixels.to(model.device)
    if isinstance(processor, LiteFrameProcessor):
        text = processor.video_text(processor.slots(len(pixels), *pixels.shape[-2:]))
        features = model.model.get_video_features(pixels).pooler_output[0]
        return EncodedVideo(text, model.config.image_token_id, features, len(pixels))
    video = family_of(model.config.model_type).encode_video(model, processor, pixels)
    return EncodedVideo(*video, len(pixels))


def prompt_request(
    model: Any,
    processor: Any,
    video: EncodedVideo,
    questions: Sequence[str],
    *,
    max_new_tokens: int,
    system: str | None = None,
) -> dict[str, Any]:
    """Arguments of `generate` for greedy answers about an encoded video; see answer."""
    prompts = [question_prompt(question, system).replace(PLACEHOLDER, video.text, 1) for question in questions]
    inputs = processor.tokenizer(
        prompts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt"
    ).to(model.device)
    check_length(video.frames, inputs["input_ids"].shape[1], max_new_tokens, model)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    places = (inputs["input_ids"] == video.token).unsqueeze(-1)
    return {
        "inputs_embeds": embeds.masked_scatter(places, video.features.to(embeds).repeat(len(prompts), 1)),
        "attention_mask": inputs["attention_mask"],
        **greedy(processor, max_new_tokens),
    }


def plain_request(
    model: Any,
    processor: Any,
    frames: np.ndarray,
    questions: Sequence[str],
    *,
    max_new_tokens: int,
    system: str | None = None,
) -> dict[str, Any]:
    """Arguments of `generate` for greedy answers; see answer."""
    video = encode_pixels(model, processor, prepare_frames(processor, frames))
    return prompt_request(model, processor, video, questions, max_new_tokens=max_new_tokens, system=system)
