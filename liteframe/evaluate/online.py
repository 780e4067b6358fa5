"""Put questions to a Video LLM while it watches: one session a video, asked at each question's second.

A session sees the frames before a question's second and its memory decides what of them is shown; asking changes
nothing. So a reply is that of a session of its own, which had seen the same frames (`restart`), and a run may go on
where it was stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from liteframe.answer.ask import read_resized
from liteframe.answer.frame_encoder import FrameEncoder
from liteframe.answer.memory import parse_memory
from liteframe.answer.session import Answer, StreamSession
from liteframe.data.video.errors import VideoError
from liteframe.data.video.process import DecodeProcess
from liteframe.data.video.sampling import as_they_come
from liteframe.data.video.timeline import EPS
from liteframe.evaluate.asking import Asking, Group, Reply, System, ask_all
from liteframe.evaluate.benchmarks.base import Benchmark, Question, StreamQuestion


@dataclass(frozen=True)
class Watching:
    """How a stream is watched.

    Attributes:
        memory: what remembers it, as `parse_memory` reads it: "window:4096", or "all".
        fps: frames a second that are looked at.
        labels: what stands before a slot, see StreamSession.
        restart: whether each question has a session of its own, which sees the video anew: the same replies, later.
    """

    memory: str
    fps: float
    labels: str
    restart: bool

    def session(self, system: System) -> StreamSession:
        """One that has seen nothing.

        Raises:
            ValueError: there is no such memory, its budget is below one slot, or there are no such labels.
        """
        memory = parse_memory(self.memory)
        return StreamSession(
            system.model, system.processor, memory, fps=self.fps, labels=self.labels, encoder=system.encoder
        )


# The questions of one session, in the order of time.
Span = tuple[str, float | None, str]


def session_of(question: Question, restart: bool) -> Span:
    """What questions of one session have in common: video and first second; those that poll are alone."""
    alone = restart or (isinstance(question, StreamQuestion) and question.polls)
    return question.video, question.start, question.id if alone else ""


def ask_online(
    watch: Callable[[], StreamSession],
    encoder: FrameEncoder,
    benchmark: Benchmark,
    questions: Sequence[Question],
    asking: Asking,
    watching: Watching,
    take: Callable[[Sequence[Question]], Sequence[Question]] = lambda asked: asked,
) -> Iterator[Reply]:
    """Replies, video by video in the order of first appearance, those of a video in the order of time.

    A question without a second is asked when the video has ended. One whose second no frame is shown before has no
    reply, but an error.

    Args:
        watch: begins a session.
        encoder: says how its model wants frames.
        benchmark: whose questions these are.
        questions: those to ask.
        asking: prompts, longest answer and deadline; its frames and rate are not used.
        watching: how videos are watched.
        take: is given the questions of a session before the video is read, and says which are asked.

    Raises:
        ValueError: a prompt is too long for the language model.
    """
    groups: dict[Span, list[Question]] = {}
    for question in questions:
        groups.setdefault(session_of(question, watching.restart), []).append(question)
    with DecodeProcess(asking.deadline) as decoder:
        for group in groups.values():
            asked = sorted(take(group), key=lambda q: np.inf if q.end is None else q.end)  # stable: ties as they stand
            yield from _watched(watch, encoder, decoder, benchmark, asked, asking, watching)


def replies(
    system: System,
    benchmark: Benchmark,
    questions: Sequence[Question],
    asking: Asking,
    watching: Watching | None,
    take: Callable[[Group], Group],
) -> Iterator[Reply]:
    """Those of one system, whether it watches or is shown whole videos; see ask_online and ask_all."""
    if watching is None:
        yield from ask_all({"": system}, benchmark, {"": questions}, asking, take=take)
        return

    def taken(asked: Sequence[Question]) -> Sequence[Question]:
        return take({"": asked}).get("", ())

    def watch() -> StreamSession:
        return watching.session(system)

    yield from ask_online(watch, system.encoder, benchmark, questions, asking, watching, taken)


class Stream:
    """A video that a session watches up to one second after the other.

    Args:
        session: that has seen nothing.
        encoder: of its model.
        decoder: reads the video.
        path: of the video.
        start: second at which it begins; None is the video's beginning.
        end: second up to which it will be watched; None is the video's end.
        fps: frames a second that are looked at.

    Raises:
        VideoError: the file cannot be read, or shows nothing then.
    """

    def __init__(
        self,
        session: StreamSession,
        encoder: FrameEncoder,
        decoder: DecodeProcess,
        path: Path,
        start: float | None,
        end: float | None,
        fps: float,
    ) -> None:
        self.session, self._encoder, self._decoder, self._path = session, encoder, decoder, path
        timeline = decoder.probe(path).timeline
        try:
            self._left = as_they_come(timeline, fps, start=start, end=end)
        except ValueError as error:
            raise VideoError(path, "index", str(error), "correct the question's start and end") from error
        self._times = [timeline.time(index) for index in self._left]

    def watch(self, until: float | None) -> None:
        """Show what comes before a second, or all that is left.

        Raises:
            VideoError: a frame cannot be decoded, or nothing has been shown by then.
        """
        count = len(self._times) if until is None else sum(time < until - EPS for time in self._times)
        if not (count or self.session.frames):
            found = f"{self._times[0]:.2f} s" if self._times else "the end"
            reason = f"asked at {until} s, before the first frame at {found}"
            raise VideoError(self._path, "index", reason, "correct the question's second")
        for frames in read_resized(self._encoder, self._decoder, self._path, self._left[:count]):
            self.session.add(frames, self._times[: len(frames)], every=True)
            self._times, self._left = self._times[len(frames) :], self._left[len(frames) :]


def _watched(
    watch: Callable[[], StreamSession],
    encoder: FrameEncoder,
    decoder: DecodeProcess,
    benchmark: Benchmark,
    questions: Sequence[Question],
    asking: Asking,
    watching: Watching,
) -> Iterator[Reply]:
    if not questions:
        return
    first, failed = questions[0], None
    try:
        stream = Stream(watch(), encoder, decoder, Path(first.video), first.start, questions[-1].end, watching.fps)
    except VideoError as error:
        yield from (Reply("", question, None, error=error) for question in questions)
        return
    for question in questions:
        began = time.monotonic()
        try:
            if failed is not None:
                raise failed
            answer = _answer(stream, benchmark, question, asking)
        except VideoError as error:
            failed = error if stream.session.frames or error.kind != "index" else None  # a later second may have frames
            yield Reply("", question, None, error=error)
            continue
        except ValueError as error:
            raise ValueError(f"question {question.id}: {error}") from error
        spent = time.monotonic() - began
        until = stream.session.last_time
        yield Reply("", question, answer.text, answer.frames, answer.tokens, seen_until=until, seconds=round(spent, 4))


def _answer(stream: Stream, benchmark: Benchmark, question: Question, asking: Asking) -> Answer:
    """Of one question at its second; of a proactive one at the second at which the model says that it is time."""
    text = benchmark.words(asking.prompts_by_task, question)
    polls = question.polls if isinstance(question, StreamQuestion) else ()
    if not polls:
        stream.watch(question.end)
        return stream.session.ask(text, max_new_tokens=asking.max_new_tokens)
    assert isinstance(question, StreamQuestion)
    for second in polls:
        stream.watch(second)
        said = stream.session.ask(question.poll, max_new_tokens=asking.max_new_tokens)
        if "yes" in said.text.lower():
            answer = stream.session.ask(text, max_new_tokens=asking.max_new_tokens)
            return Answer(f"{second:g} s: {answer.text}", answer.frames, answer.tokens)
    return Answer(f"{polls[-1]:g} s:", said.frames, said.tokens)
