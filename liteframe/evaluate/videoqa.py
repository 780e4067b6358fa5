"""Answer a file of questions about videos with a Video LLM, and keep every answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from liteframe.answer.generate import answer
from liteframe.data.video.process import DecodeProcess
from liteframe.data.video.sampling import uniform

REQUIRED = ("video", "question", "answer")


@dataclass(frozen=True)
class VideoQuestions:
    """The questions about one video; `rows` holds their places in the file."""

    video: Path
    rows: tuple[int, ...]


def load_questions(path: str | Path) -> list[dict[str, Any]]:
    """Read a JSONL of `video` (relative to the file), `question`, `answer` and optional `type`.

    Raises:
        ValueError: the file is missing or empty, or a line is not such a row; names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give a JSONL with one question a line")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error.msg}); each line is one object") from error
        missing = [key for key in REQUIRED if not isinstance(row, dict) or not isinstance(row.get(key), str)]
        if missing:
            raise ValueError(f"{path}:{number}: lacks the text field(s) {', '.join(missing)}")
        rows.append({**row, "video": str(path.parent / row["video"])})
    if not rows:
        raise ValueError(f"{path}: holds no questions")
    return rows


def by_video(rows: Sequence[dict[str, Any]]) -> list[VideoQuestions]:
    """Group rows that share a video, in order of first appearance."""
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row["video"], []).append(number)
    return [VideoQuestions(Path(video), tuple(numbers)) for video, numbers in groups.items()]


def read_uniformly(decoder: DecodeProcess, path: Path, frames: int) -> np.ndarray:
    """`frames` frames spread evenly over a video (fewer where it has fewer), uint8 `[T, H, W, 3]`.

    Raises:
        VideoError: the file or a frame of it cannot be decoded.
    """
    available = decoder.probe(path).frames
    return decoder.read(path, uniform(available, min(frames, available)))


def answer_rows(
    model: Any,
    processor: Any,
    rows: Sequence[dict[str, Any]],
    *,
    frames: int,
    max_new_tokens: int = 16,
    progress: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """Greedy answers to the rows, one a row; each question is asked on its own, each video is encoded once.

    Args:
        model: an InternVL, or one with a LiteFrame encoder, in eval mode.
        processor: the processor that fits it.
        rows: as `load_questions` gives them.
        frames: frames of each video, spread evenly.
        max_new_tokens: longest answer.
        progress: called with the number of questions answered since the last call.

    Raises:
        VideoError: a video cannot be read: an accuracy over the rest would be another benchmark.
    """
    answers = [""] * len(rows)
    with DecodeProcess() as decoder:
        for group in by_video(rows):
            shown = read_uniformly(decoder, group.video, frames)
            questions = [rows[n]["question"] for n in group.rows]
            replies = answer(model, processor, shown, questions, max_new_tokens=max_new_tokens)
            for number, reply in zip(group.rows, replies, strict=True):
                answers[number] = reply
            progress(len(group.rows))
    return answers
