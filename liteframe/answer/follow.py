"""A stream and questions about it, answered while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from liteframe.answer.generate import check_text
from liteframe.answer.session import StreamSession
from liteframe.answer.sources import Frame
from liteframe.texts import read_jsonl


@dataclass(frozen=True)
class TimedQuestion:
    """A question, and the second of the stream at which it is asked; None asks at once."""

    question: str
    time: float | None = None


@dataclass(frozen=True)
class StreamAnswer:
    """An answer, and what it was given from.

    Attributes:
        question: what was asked.
        time: seconds at which it was to be asked; None was at once.
        text: the answer.
        seen_until: seconds of the last frame; None before the first.
        frames: that were seen.
        tokens: that the memory holds.
        bytes: that the session holds.
        first_word: seconds until the first words came.
    """

    question: str
    time: float | None
    text: str
    seen_until: float | None
    frames: int
    tokens: int
    bytes: int
    first_word: float


def read_questions(path: Path) -> list[TimedQuestion]:
    """Rows `{"time": seconds, "question": text}` of a JSONL file, in the order of time.

    Raises:
        ValueError: file and line of a row that is not such, or that holds no row.
    """
    rows = []
    for where, row in read_jsonl(path):
        time, question = (row.get("time"), row.get("question")) if isinstance(row, dict) else (None, None)
        if isinstance(time, bool) or not isinstance(time, int | float) or not 0 <= time < 1e9:
            raise ValueError(f'{where}: needs "time", seconds from 0 on, got {time!r}')
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f'{where}: needs "question", a text, got {question!r}')
        check_text(question)
        rows.append(TimedQuestion(question, float(time)))
    if not rows:
        raise ValueError(f"{path}: holds no question")
    return sorted(rows, key=lambda row: row.time or 0.0)


def follow(
    session: StreamSession,
    frames: Iterable[Frame | None],
    questions: list[TimedQuestion],
    typed: Callable[[], Iterator[str]],
    *,
    max_new_tokens: int,
) -> Iterator[StreamAnswer]:
    """Show a session the frames of a source, and answer questions when their time has come.

    A question at second t is answered from all frames up to t. Those that are left are answered when the source ends.

    Args:
        session: is changed.
        frames: of a source.
        questions: in the order of time.
        typed: questions that have come in since the last call.
        max_new_tokens: longest answer.
    """
    left = list(questions)
    for frame in frames:
        for text in typed():
            yield _answered(session, TimedQuestion(text), max_new_tokens)
        if frame is None:
            continue
        while left and left[0].time is not None and left[0].time < frame.time:
            yield _answered(session, left.pop(0), max_new_tokens)
        session.add(frame.image[None], [frame.time])
    for question in (*left, *map(TimedQuestion, typed())):
        yield _answered(session, question, max_new_tokens)


def _answered(session: StreamSession, asked: TimedQuestion, max_new_tokens: int) -> StreamAnswer:
    begin, words, first = time.monotonic(), [], 0.0
    for piece in session.stream(asked.question, max_new_tokens=max_new_tokens):
        first = first or time.monotonic() - begin
        words.append(piece)
    size = session.size()
    text = "".join(words).strip()
    first = first or time.monotonic() - begin
    return StreamAnswer(
        asked.question, asked.time, text, session.last_time, session.frames, size.tokens, size.bytes, first
    )
