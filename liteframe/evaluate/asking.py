"""Put a benchmark's questions to a Video LLM: each video read and encoded once, each question asked on its own.

Questions are never batched: a reply then depends on the question alone, not on which questions share a batch, so that
a resumed run, another order or another harness gives the same replies. The next video is read meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from liteframe.answer.ask import read_resized
from liteframe.answer.frame_encoder import frame_encoder
from liteframe.answer.generate import check_text
from liteframe.answer.session import StreamSession
from liteframe.data.video.errors import VideoError
from liteframe.data.video.process import DecodeProcess
from liteframe.data.video.sampling import choose_frames
from liteframe.evaluate.benchmarks.base import Benchmark, Question, ask_text
from liteframe.evaluate.benchmarks.subtitles import read_subtitles, shown_lines, shown_lines_widened

NO_SUBTITLES = "(none)"
SHOWN = 10  # questions that a message names


@dataclass(frozen=True)
class Asking:
    """How questions are put.

    Attributes:
        frames: at most so many, spread evenly over the span.
        fps: frames a second, as many of them as `frames` allows; None takes `frames` whatever the rate.
        prompt: see Benchmark.
        subtitles: whether the lines on which frames fall are shown.
        max_new_tokens: longest answer.
        deadline: seconds that one reading of frames may take.
    """

    frames: int
    fps: float | None
    prompt: str
    subtitles: bool
    max_new_tokens: int
    deadline: float


@dataclass(frozen=True)
class VideoFrames:
    """Frames uint8 [T,h,w,3] of the model's size, when they are shown, and when the video ends (seconds)."""

    frames: np.ndarray
    times: tuple[float, ...]
    end: float


@dataclass(frozen=True)
class Reply:
    """What came of a question: a text about so many frames, or the reason why its video could not be read."""

    question: Question
    text: str | None
    frames: int
    error: VideoError | None = None


def ask_all(
    model: Any, processor: Any, benchmark: Benchmark, questions: Sequence[Question], asking: Asking
) -> Iterator[Reply]:
    """Replies as they come, video by video.

    Args:
        model: of `load_video_llm`, on its device.
        processor: of `load_video_llm`.
        benchmark: whose questions these are.
        questions: those to ask.
        asking: how.

    Raises:
        ValueError: a prompt is too long for the language model or holds its control tokens, or subtitles are broken.
    """
    groups = _by_video(questions)
    if not groups:
        return
    with DecodeProcess(asking.deadline) as decoder, ThreadPoolExecutor(1) as reader:

        def read(group: list[Question]) -> VideoFrames | VideoError:
            try:
                return read_video(model, processor, decoder, group[0], asking)
            except VideoError as error:
                return error

        coming = reader.submit(read, groups[0])
        for number, group in enumerate(groups, 1):
            video = coming.result()
            if number < len(groups):
                coming = reader.submit(read, groups[number])
            if isinstance(video, VideoError):
                yield from (Reply(question, None, 0, video) for question in group)
            else:
                yield from _answers(model, processor, benchmark, group, video, asking)


def read_video(model: Any, processor: Any, decoder: DecodeProcess, question: Question, asking: Asking) -> VideoFrames:
    """Read and resize the frames that a question is about.

    Raises:
        VideoError: the file or a frame of it cannot be decoded, or the span holds no frame.
    """
    path = Path(question.video)
    timeline = decoder.probe(path).timeline
    try:
        indices = choose_frames(
            timeline, frames=asking.frames, target_fps=asking.fps, start=question.start, end=question.end
        )
    except ValueError as error:
        raise VideoError(path, "index", str(error), "correct the question's start and end") from error
    frames = np.concatenate(list(read_resized(frame_encoder(model, processor), decoder, path, indices)))  # [T,h,w,3]
    return VideoFrames(frames, tuple(timeline.time(i) for i in indices), timeline.end)


def check_words(benchmark: Benchmark, questions: Sequence[Question], asking: Asking) -> None:
    """Refuse, before the first question is put, words that none can be: a control token, or broken subtitles.

    Raises:
        ValueError: names the questions.
    """
    wrong: list[str] = []
    read: set[Path] = set()
    for question in questions:
        try:
            check_text(ask_text(asking.prompt, question, benchmark.option_format))
            if (path := _subtitles(question, asking)) is not None and path not in read:
                read.add(path)
                for line in read_subtitles(path):
                    check_text(line.text, f"subtitle file {path}")
        except ValueError as error:
            wrong.append(f"question {question.id}: {error}")
    if wrong:
        rest = f"\n  and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ValueError(
            f"{len(wrong)} of {len(questions)} questions cannot be asked:\n  " + "\n  ".join(wrong[:SHOWN]) + rest
        )


def question_text(benchmark: Benchmark, question: Question, video: VideoFrames, asking: Asking) -> str:
    """The words put to the model, without the video.

    Raises:
        ValueError: the subtitles are broken.
    """
    lines: list[str] = []
    if (path := _subtitles(question, asking)) is not None:
        read = read_subtitles(path, question.subtitle_shift, video.end)
        rule = shown_lines_widened if benchmark.widens_subtitles else shown_lines
        lines = rule(read, video.times)
    return ask_text(asking.prompt, question, benchmark.option_format, "\n".join(lines) or NO_SUBTITLES)


def _answers(
    model: Any, processor: Any, benchmark: Benchmark, group: Sequence[Question], video: VideoFrames, asking: Asking
) -> Iterator[Reply]:
    session = StreamSession(model, processor)
    session.add(video.frames)
    for question in group:
        try:
            text = question_text(benchmark, question, video, asking)
            answer = session.ask(text, max_new_tokens=asking.max_new_tokens)
        except ValueError as error:
            raise ValueError(f"question {question.id}: {error}") from error
        yield Reply(question, answer.text, answer.frames)


def _subtitles(question: Question, asking: Asking) -> Path | None:
    path = Path(question.subtitles) if asking.subtitles and question.subtitles else None
    return path if path is not None and path.is_file() else None


def _by_video(questions: Sequence[Question]) -> list[list[Question]]:
    """Questions that share a video and a span, in order of first appearance."""
    groups: dict[tuple[str, float | None, float | None], list[Question]] = {}
    for question in questions:
        groups.setdefault((question.video, question.start, question.end), []).append(question)
    return list(groups.values())
