"""OVBench: questions of what is, was and will be, at a second of a video (`MCG-NJU/VideoChat-Online`, MIT License)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from typing_extensions import override

from liteframe.evaluate.benchmarks.base import (
    LETTERS,
    Benchmark,
    Dataset,
    Metric,
    Question,
    Result,
    StreamQuestion,
    share_of,
)
from liteframe.evaluate.benchmarks.records import (
    Row,
    answer_letter,
    find_files,
    find_video,
    options_field,
    rows_of,
    seconds_field,
    text_field,
)
from liteframe.evaluate.letters import ranked_letter


class OVBench(Benchmark):
    """The JSON files (`tao`, `coin`, `hirest`, `ava`) and the videos.

    A question is asked at its `end`, about the video from its `start` on.
    """

    name = "ovbench"
    title = "OVBench"
    layout = "json/*.json (or *.json) and videos/"
    prompt = "{question}\n{options}\nReply with the letter of the right option alone."
    rule = "the authors': a reply that begins 'A. ', else the first A-E that stands alone, small letters too"

    @override
    def load(self, source: Path) -> Dataset:
        files = find_files(source, ("json/*.json", "*.json"), self.layout)
        questions = [
            _question(source, path.stem, number, where, row)
            for path in files
            for number, (where, row) in enumerate(rows_of(path), 1)
        ]
        return Dataset(tuple(questions), tuple(files))

    @override
    def choice(self, question: Question, reply: str, seed: int) -> str:
        """As its authors read: "a person" is A, a flaw of the rule, kept, for numbers that compare."""
        if begins := re.match(r"\s*([A-E])\. ", reply):
            return begins[1]
        alone = re.search(r"\b[A-E]\b", re.sub(r"[^\w\s]", "", reply), re.IGNORECASE)
        return alone[0].upper() if alone else ""

    def metrics(self, results: Sequence[Result], seed: int) -> dict[str, Metric]:
        """A strict rule, and the authors' count, which leaves out empty replies."""
        answered = [result for result in results if (result.reply or "").strip()]
        found = {"strict": Metric("the letter in the most telling place", share_of(results, _strict))}
        if answered:
            share = share_of(answered, lambda question, reply: self.reply_is_right(question, reply, seed))
            found["authors"] = Metric("the same rule as accuracy, empty replies and unread videos left out", share)
        return found

    @override
    def constants(self, question: Question) -> dict[str, str]:
        return {letter: letter for letter in question.letters}


def _strict(question: Question, reply: str) -> bool:
    return ranked_letter(reply, question.letters) == question.answer


def _question(folder: Path, stem: str, number: int, where: str, row: Row) -> StreamQuestion:
    options = options_field(row, where, "candidates")
    start, end = seconds_field(row, where, "start") or 0.0, seconds_field(row, where, "end")
    if end is None or end <= start:
        raise ValueError(f"{where}: 'end' must be seconds after 'start' ({start}), got {row.get('end')!r}")
    video = text_field(row, where, "video")
    bases = ("videos", f"videos/{stem}", "data", f"data/{stem}", stem, ".")
    return StreamQuestion(
        id=f"{stem}-{number}",
        video=find_video(folder, bases, video, where),
        text=text_field(row, where, "question"),
        options=options,
        letters=LETTERS[: len(options)],
        answer=answer_letter(text_field(row, where, "answer"), options, where, kind="text"),
        groups={
            "task": text_field(row, where, "answer_type"),
            **({"sub-task": text_field(row, where, "sub_answer_type")} if row.get("sub_answer_type") else {}),
            "source": stem,
        },
        start=start or None,
        end=end,
    )
