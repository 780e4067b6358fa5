"""One question about one video file, answered as the words are found."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch

from liteframe.answer.generate import plain_request, stream_answer
from liteframe.answer.session import prefill_overlapped
from liteframe.data.video.process import DecodeProcess
from liteframe.data.video.sampling import at_fps
from liteframe.models.vlm.chat import IMAGE, PLACEHOLDER
from liteframe.models.vlm.family import CONTROL_TOKENS
from liteframe.models.vlm.processor import LiteFrameProcessor


def ask(
    model: Any,
    processor: Any,
    path: str | os.PathLike[str],
    question: str,
    *,
    frames: int = 64,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
    max_new_tokens: int = 512,
    system: str | None = None,
    deadline: float = 120.0,
    overlap: bool | None = None,
) -> Iterator[str]:
    """Stream a greedy answer, piece by piece; `"".join(ask(...))` is the whole.

    With a LiteFrame encoder on a GPU, reading the file, encoding and prefill overlap clip by clip (see overlap).

    Args:
        model: of `load_video_llm`.
        processor: of `load_video_llm`.
        path: a local video file.
        question: without the video placeholder.
        frames: at most so many, spread evenly over the span.
        fps: frames a second, as many of them as `frames` allows; None takes `frames` whatever the rate.
        start: start of the span in seconds; None is the video's.
        end: end of the span in seconds; None is the video's.
        max_new_tokens: longest answer.
        system: a system message; None sends none.
        deadline: seconds that reading the frames may take.
        overlap: read, encode and prefill at the same time, clip by clip; None does so on a GPU. On a CPU the three
            compete for the same cores, and prefill in parts is slower (benchmarks/latency.md).

    Raises:
        VideoError: the file or a frame of it cannot be decoded.
        ValueError: an argument is out of range, the text holds a control token or placeholder, or prompt and answer are
            longer than the language model reads.
    """
    check_text(question, system)
    with DecodeProcess(deadline) as decoder:
        indices = choose_frames(decoder, path, frames=frames, fps=fps, start=start, end=end)
        settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "system": system}
        wanted = model.device.type == "cuda" if overlap is None else overlap
        if wanted and isinstance(processor, LiteFrameProcessor):
            size = model.config.vision_config.encoder_config.clip_frames
            parts = (indices[i : i + size] for i in range(0, len(indices), size))
            clips = (decoder.read(path, part) for part in parts)
            request = prefill_overlapped(model, processor, clips, len(indices), question, **settings)
        else:
            with torch.inference_mode():
                request = plain_request(model, processor, decoder.read(path, indices), [question], **settings)
    yield from stream_answer(model, processor, request)


def choose_frames(
    decoder: DecodeProcess,
    path: str | os.PathLike[str],
    *,
    frames: int,
    fps: float | None,
    start: float | None,
    end: float | None,
) -> list[int]:
    """Numbers of the frames that a question is about; arguments and errors as of ask."""
    info = decoder.probe(path)
    return at_fps(
        info.frames,
        info.fps,
        target_fps=info.fps if fps is None else fps,
        max_frames=frames,
        start=start or 0.0,
        end=end,
    )


def check_text(question: str, system: str | None) -> None:
    """Refuse text that would become control or image tokens.

    Raises:
        ValueError: names the token.
    """
    for name, text in (("question", question), ("system message", system or "")):
        for token in (*CONTROL_TOKENS, PLACEHOLDER, IMAGE):
            if token in text:
                raise ValueError(f"the {name} holds {token!r}, which is a control token or placeholder; leave it out")
