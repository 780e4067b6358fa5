"""Put a benchmark's questions to Video LLMs: each video read once, and encoded once, each question asked on its own.

Questions are never batched: a reply then depends on the question alone, not on which questions share a batch, so that
a resumed run, another order or another harness gives the same replies. The next video is read meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from liteframe.answer.ask import read_resized
from liteframe.answer.frame_encoder import FrameEncoder, frame_encoder
from liteframe.answer.generate import check_text
from liteframe.answer.positions import OF_REDUCED
from liteframe.answer.session import StreamSession
from liteframe.data.video.errors import VideoError
from liteframe.data.video.process import DecodeProcess
from liteframe.data.video.sampling import choose_frames, rate_of
from liteframe.evaluate.benchmarks.base import Benchmark, Question
from liteframe.evaluate.benchmarks.subtitles import read_subtitles, shown_lines, shown_lines_widened

NO_SUBTITLES = "(none)"
SHOWN = 10  # questions that a message names


# Questions about one video and span, by system.
Group: TypeAlias = Mapping[str, Sequence[Question]]


@dataclass(frozen=True)
class Asking:
    """How questions are put.

    Attributes:
        frames: at most so many, spread evenly over the span; None where a stream is watched.
        fps: frames a second, as many of them as `frames` allows; None takes `frames` whatever the rate.
        prompt: see Benchmark.
        prompts: see Benchmark.
        subtitles: whether the lines on which frames fall are shown.
        max_new_tokens: longest answer.
        deadline: seconds that one reading of frames may take.
        sampling: of frames, see choose_frames.
    """

    frames: int | None
    fps: float | None
    prompt: str
    subtitles: bool
    max_new_tokens: int
    deadline: float
    sampling: str = "even"
    prompts: Mapping[str, str] = field(default_factory=dict)

    @property
    def prompts_by_task(self) -> dict[str, str]:
        """All of them, as Benchmark.words takes them."""
        return {**self.prompts, "": self.prompt}


@dataclass(frozen=True)
class System:
    """A Video LLM and how it looks at a video.

    Attributes:
        model: of `load_video_llm`, on its device.
        processor: of `load_video_llm`.
        encoder: from frames to tokens, such as `frame_encoder(model, processor)`.
        blind: whether it is asked without the video, whose frames are read all the same.
        positions: of what a reducer leaves, "packed" or "original".
        labels: before each slot, see StreamSession.
    """

    model: Any
    processor: Any
    encoder: FrameEncoder
    blind: bool = False
    positions: str = "packed"
    labels: str = "frames"

    @classmethod
    def of(cls, model: Any, processor: Any) -> System:
        """A Video LLM that looks at a video in its own way."""
        return cls(model, processor, frame_encoder(model, processor))

    def look(self, frames: np.ndarray, times: Sequence[float] | None = None) -> StreamSession:
        """A session that has seen frames uint8 [T,h,w,3], shown at these seconds or one a second, and nothing else."""
        how: dict[str, Any] = {"positions": OF_REDUCED[self.positions], "labels": self.labels}
        session = StreamSession(self.model, self.processor, encoder=self.encoder, **how)
        if not self.blind:
            session.add(frames, times, every=True)
        return session


@dataclass(frozen=True)
class VideoFrames:
    """Frames uint8 [T,h,w,3] of the model's size, when they are shown, and when the video ends (seconds)."""

    frames: np.ndarray
    times: tuple[float, ...]
    end: float


@dataclass(frozen=True)
class Reply:
    """What came of a question: a text about so many frames, or the reason why its video could not be read.

    Attributes:
        system: whose reply it is.
        tokens: of the video, that the language model read.
        fps: frames a second that were looked at; None of a single one.
        seen_until: seconds of the last frame that a stream had shown.
        seconds: that a stream's answer took.
    """

    system: str
    question: Question
    text: str | None
    frames: int = 0
    tokens: int = 0
    fps: float | None = None
    error: VideoError | None = None
    seen_until: float | None = None
    seconds: float | None = None


def ask_all(
    systems: Mapping[str, System],
    benchmark: Benchmark,
    questions: Mapping[str, Sequence[Question]],
    asking: Asking,
    failures: dict[str, Exception] | None = None,
    take: Callable[[Group], Group] = lambda group: group,
) -> Iterator[Reply]:
    """Replies as they come, video by video, and for each video system by system.

    Args:
        systems: by name; all take frames of one size, so that a video is read once for all.
        benchmark: whose questions these are.
        questions: those to ask, by system.
        asking: how.
        failures: is told why a system cannot go on, which is asked nothing more; None raises it.
        take: is given a video's questions, by system, before it is read, and says which are asked.

    Raises:
        ValueError: a prompt is too long for the language model or holds its control tokens, subtitles are broken, or a
            reducer cannot do what it should.
        torch.OutOfMemoryError: a system needs more memory than there is.
    """
    groups = filter(None, map(take, _by_video(questions)))  # one after the other, as they are read
    group = next(groups, None)
    if group is None:
        return
    eyes = next(iter(systems.values())).encoder
    with DecodeProcess(asking.deadline) as decoder, ThreadPoolExecutor(1) as reader:

        def read(group: Group) -> VideoFrames | VideoError:
            try:
                return read_video(eyes, decoder, next(iter(group.values()))[0], asking)
            except VideoError as error:
                return error

        coming = reader.submit(read, group)
        while group is not None:
            video, following = coming.result(), next(groups, None)
            if following is not None:
                coming = reader.submit(read, following)
            for name, asked in group.items():
                if isinstance(video, VideoError):
                    yield from (Reply(name, question, None, error=video) for question in asked)
                elif failures is None:
                    yield from _answers(name, systems[name], benchmark, asked, video, asking)
                elif name not in failures:
                    try:
                        yield from _answers(name, systems[name], benchmark, asked, video, asking)
                    except (ValueError, torch.OutOfMemoryError) as error:
                        failures[name] = error
            group = following


def read_video(encoder: FrameEncoder, decoder: DecodeProcess, question: Question, asking: Asking) -> VideoFrames:
    """Read the frames that a question is about, and resize them as an encoder wants them.

    Raises:
        VideoError: the file or a frame of it cannot be decoded, or the span holds no frame.
    """
    path = Path(question.video)
    timeline = decoder.probe(path).timeline
    try:
        indices = choose_frames(
            timeline,
            frames=asking.frames,
            target_fps=asking.fps,
            start=question.start,
            end=question.end,
            sampling=asking.sampling,
        )
    except ValueError as error:
        raise VideoError(path, "index", str(error), "correct the question's start and end") from error
    frames = np.concatenate(list(read_resized(encoder, decoder, path, indices)))  # [T,h,w,3]
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
            check_text(benchmark.words(asking.prompts_by_task, question))
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
    return benchmark.words(asking.prompts_by_task, question, "\n".join(lines) or NO_SUBTITLES)


def _answers(
    name: str,
    system: System,
    benchmark: Benchmark,
    questions: Sequence[Question],
    video: VideoFrames,
    asking: Asking,
) -> Iterator[Reply]:
    session = system.look(video.frames, video.times)
    for question in questions:
        try:
            text = question_text(benchmark, question, video, asking)
            answer = session.ask(text, max_new_tokens=asking.max_new_tokens)
        except ValueError as error:
            raise ValueError(f"question {question.id}: {error}") from error
        yield Reply(name, question, answer.text, answer.frames, answer.tokens, rate_of(video.times))


def _subtitles(question: Question, asking: Asking) -> Path | None:
    path = Path(question.subtitles) if asking.subtitles and question.subtitles else None
    return path if path is not None and path.is_file() else None


def span_of(question: Question) -> tuple[str, float | None, float | None]:
    """The video and the part of it that a question is about."""
    return question.video, question.start, question.end


def _by_video(questions: Mapping[str, Sequence[Question]]) -> list[Group]:
    """By system, questions that share a video and a span, in order of first appearance."""
    groups: dict[tuple[str, float | None, float | None], dict[str, list[Question]]] = {}
    for name, asked in questions.items():
        for question in asked:
            group = groups.setdefault(span_of(question), {})
            group.setdefault(name, []).append(question)
    return list(groups.values())
