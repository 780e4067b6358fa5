"""Which compression of an elastic encoder a Video LLM is given: one by name, or the finest that there is room for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from liteframe.models.checkpoints import checkpoint_source
from liteframe.models.student.io import read_config
from liteframe.models.vlm.load import load_processors
from liteframe.models.vlm.processor import LiteFrameProcessor

AUTO = "auto"
AROUND = 64  # tokens of a prompt beside video, question and system message, at most


def video_tokens(processor: LiteFrameProcessor, frames: int) -> int:
    """Tokens of a video of so many frames in a prompt, the text around its features included."""
    text = processor.video_text(processor.slots(frames, *processor.frame_size))
    return text_tokens(processor, text)


def text_tokens(processor: Any, text: str) -> int:
    """Tokens of a text."""
    return len(processor.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def check_mode(mode: str | None, encoder: str | os.PathLike[str] | None) -> None:
    """Refuse what no mode of an encoder is, before anything is loaded.

    Args:
        mode: a name, "auto", or "auto:BUDGET"; None is always right.
        encoder: its folder.

    Raises:
        ValueError: there is no encoder, it has no such mode, or the budget is no number of tokens.
    """
    if mode is None:
        return
    if encoder is None:
        raise ValueError(f"--mode {mode} is a compression of an elastic encoder: name one with --encoder")
    name, budget = _parts(mode)
    config = read_config(Path(encoder))
    try:
        config.of_mode(config.default_mode if name == AUTO else name)
    except ValueError as error:
        raise ValueError(f"--mode {mode}, {encoder}: {error}") from error
    if budget is not None and budget < 1:
        raise ValueError(f"--mode {mode}: a budget is a number of tokens of at least 1, such as {AUTO}:4096")


def find_mode(
    mode: str | None,
    source: str | os.PathLike[str],
    encoder: str | os.PathLike[str] | None,
    *,
    frames: int | None,
    words: int,
    answer: int,
) -> str | None:
    """The name of the mode that is meant.

    "auto" is the finest one with which a video leaves room for question and answer in what the language model reads,
    "auto:BUDGET" the finest of these whose video has no more tokens than that, the text between its slots included.

    Args:
        mode: of check_mode.
        source: the Video LLM, as load_video_llm takes it.
        encoder: folder of the encoder.
        frames: of a video, at most; None: of a stream, which has no number of them.
        words: tokens of question and system message, at most.
        answer: tokens of an answer, at most.

    Raises:
        ValueError: as of check_mode, no mode is coarse enough, or "auto" without a number of frames.
    """
    check_mode(mode, encoder)
    if mode is None or encoder is None or _parts(mode)[0] != AUTO:
        return mode
    if frames is None:
        raise ValueError(f"--mode {mode} follows from a number of frames, and a stream has none: name a mode")
    _, budget = _parts(mode)
    text = AutoConfig.from_pretrained(checkpoint_source(source), trust_remote_code=False).get_text_config()
    room = text.max_position_embeddings - words - answer - AROUND
    most = room if budget is None else min(room, budget)
    tokens = {m: video_tokens(p, frames) for m, p in load_processors(source, encoder).items() if m is not None}
    if fitting := [name for name, count in tokens.items() if count <= most]:
        return fitting[0]
    counts = ", ".join(f"{name} {count}" for name, count in tokens.items())
    raise ValueError(
        f"--mode {mode}: with {frames} frames, no mode of {encoder} stays within {most} tokens ({counts}); take fewer "
        "--frames"
    )


def _parts(mode: str) -> tuple[str, int | None]:
    name, colon, budget = mode.partition(":")
    if not colon:
        return name, None
    return name, int(budget) if name == AUTO and budget.isdecimal() else 0
