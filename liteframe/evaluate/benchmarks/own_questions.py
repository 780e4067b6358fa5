"""Your own questions in a JSONL file: multiple choice, or free-form with an exact answer."""

from __future__ import annotations

import re
from pathlib import Path

from typing_extensions import override

from liteframe.evaluate.benchmarks.base import LETTERS, Benchmark, Dataset, Question
from liteframe.evaluate.benchmarks.records import (
    Row,
    answer_letter,
    options_field,
    rows_of,
    seconds_field,
    text_field,
)

# Marks around words; signs of numbers and names (-3, .5, 50%, C#) are part of them.
_BEFORE = re.compile(r"""^(?:["'`“”‘’«»()\[\]{}*_,;:!?…\s]|\.(?!\d)|[-–—]\s)+""")
_AFTER = re.compile(r"""(?:["'`“”‘’«»()\[\]{}*_.,;:!?…\s]|\s[-–—])+$""")


class MultipleChoice(Benchmark):
    """Rows `{id, video, question, options, answer, category?, start?, end?}`; the answer is a letter or an option."""

    name = "multiple-choice"
    title = "multiple choice"
    layout = "a JSONL file with id, video (relative to the file), question, options and answer in each line"
    prompt = "{question}\n{options}\nReply with nothing but the letter of the right option."

    @override
    def load(self, source: Path) -> Dataset:
        questions = []
        for where, row in _rows(source, self.layout):
            options = options_field(row, where, "options")
            questions.append(
                Question(
                    id=text_field(row, where, "id"),
                    options=options,
                    letters=LETTERS[: len(options)],
                    answer=answer_letter(text_field(row, where, "answer"), options, where),
                    groups={"category": text_field(row, where, "category")} if row.get("category") is not None else {},
                    **_common(source, where, row),
                )
            )
        return Dataset(tuple(questions), (source,))


class FreeForm(Benchmark):
    """Rows `{video, question, answer, id?, type?, start?, end?}`; right is the same words."""

    name = "free-form"
    title = "free-form answers"
    layout = "a JSONL file with video (relative to the file), question and answer in each line"
    prompt = "{question}"
    rule = "the same words, whatever case, spaces and outer punctuation; signs of numbers are part of them"
    needs_answer = True

    @override
    def load(self, source: Path) -> Dataset:
        questions = []
        for number, (where, row) in enumerate(_rows(source, self.layout), 1):
            if row.get("options") is not None:
                raise ValueError(f"{where}: has 'options', other lines have none; keep the two kinds in two files")
            questions.append(
                Question(
                    id=text_field(row, where, "id") if row.get("id") is not None else f"line {number}",
                    answer=text_field(row, where, "answer") if self.needs_answer or row.get("answer") else "",
                    groups={"type": text_field(row, where, "type")} if row.get("type") is not None else {},
                    **_common(source, where, row),
                )
            )
        return Dataset(tuple(questions), (source,))

    @override
    def choice(self, question: Question, reply: str, seed: int) -> str:
        return normalize(reply)

    def right(self, question: Question, choice: str) -> bool:
        """Whether they are the expected ones."""
        return choice == normalize(question.answer)


def normalize(words: str) -> str:
    """Lower case, without doubled spaces and punctuation at the ends, unless there is nothing else: "?" stays."""
    words = " ".join(words.lower().split())
    return _AFTER.sub("", _BEFORE.sub("", words)) or words


def has_options(path: Path) -> bool:
    """Whether a JSONL file of questions is multiple choice, by its first row.

    Raises:
        ValueError: no such file, or its first line is broken.
    """
    return any(row.get("options") is not None for _, row in list(_rows(path, MultipleChoice.layout))[:1])


def _rows(source: Path, layout: str) -> list[tuple[str, Row]]:
    if not source.is_file():
        raise ValueError(f"{source}: no such file; expected {layout}")
    if source.suffix != ".jsonl":
        raise ValueError(f"{source}: not a .jsonl file; expected {layout}")
    return list(rows_of(source))


def _common(source: Path, where: str, row: Row) -> Row:
    start, end = (seconds_field(row, where, name) for name in ("start", "end"))
    if end is not None and end <= (start or 0.0):
        raise ValueError(f"{where}: the span from {start or 0.0} s to {end} s is empty")
    return {
        "video": str(source.parent / text_field(row, where, "video")),
        "text": text_field(row, where, "question"),
        "start": start,
        "end": end,
    }
