"""LongVideoBench, validation split (arXiv 2407.15754); the test split has no public answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from typing_extensions import override

from liteframe.evaluate.benchmarks.base import LETTERS, Benchmark, Dataset, Metric, Question, Result, share_of
from liteframe.evaluate.benchmarks.records import (
    Row,
    find_file,
    find_files,
    find_video,
    options_field,
    rows_of,
    text_field,
)
from liteframe.evaluate.letters import first_letter, guess, ranked_letter

LEAD_INS = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
)
ABSENT = "N/A"


class LongVideoBench(Benchmark):
    """`longvideobench/LongVideoBench` as downloaded, its archives unpacked.

    Subtitles are put before the question, those on which a sampled frame falls by the authors' rule. The authors put
    them between the frames instead; a prompt of slots (4 frames a token grid) has no such places.
    """

    name = "longvideobench"
    title = "LongVideoBench (validation)"
    layout = "lvb_val.json or validation-*.parquet, videos/ and, for --subtitles, subtitles/"
    prompt = "{question}\n{options}\nReply with nothing but the letter of the right option."
    subtitle_prompt = "Subtitles of the frames shown:\n{subtitles}\n" + prompt
    max_new_tokens = 32
    widens_subtitles = True
    rule = "the first capital A-E after common lead-ins, else a seeded random guess (the authors' rule)"

    @override
    def load(self, source: Path) -> Dataset:
        patterns = ("lvb_val.json", "validation-*.parquet", "data/validation-*.parquet")
        files = find_files(source, patterns, self.layout)
        return Dataset(tuple(_question(source, w, row) for path in files for w, row in rows_of(path)), tuple(files))

    @override
    def choice(self, question: Question, reply: str, seed: int) -> str:
        return first_letter(reply, "ABCDE", LEAD_INS) or guess(question.letters, seed, question.id)

    @override
    def metrics(self, results: Sequence[Result], seed: int) -> dict[str, Metric]:
        return {
            "without guesses": Metric(
                "the authors' rule, but a reply without a letter is wrong",
                share_of(results, lambda q, reply: first_letter(reply, "ABCDE", LEAD_INS) == q.answer),
            ),
            "strict letter": Metric(
                "the letter in the most telling place; none is wrong",
                share_of(results, lambda q, reply: ranked_letter(reply, q.letters) == q.answer),
            ),
        }


def _question(folder: Path, where: str, row: Row) -> Question:
    if row.get("correct_choice") is None:
        raise ValueError(f"{where}: has no 'correct_choice'; the test split has no public answers, use lvb_val.json")
    options, right = _options(row, where), row["correct_choice"]
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(options):
        raise ValueError(f"{where}: 'correct_choice' is {right!r}; there are {len(options)} options, counted from 0")
    shift = row.get("starting_timestamp_for_subtitles") or 0.0
    if isinstance(shift, bool) or not isinstance(shift, int | float):
        raise ValueError(f"{where}: 'starting_timestamp_for_subtitles' must be seconds, got {shift!r}")
    names = ("duration_group", "question_category", "topic_category")
    return Question(
        id=text_field(row, where, "id"),
        video=find_video(folder, ("videos", "."), text_field(row, where, "video_path"), where),
        text=text_field(row, where, "question"),
        options=options,
        letters=LETTERS[: len(options)],
        answer=LETTERS[right],
        groups={name: text_field(row, where, name) for name in names if row.get(name) is not None},
        subtitles=_subtitles(folder, where, row),
        subtitle_shift=float(shift),
    )


def _subtitles(folder: Path, where: str, row: Row) -> str | None:
    if row.get("subtitle_path") is None:
        return None
    return find_file(folder, ("subtitles",), [text_field(row, where, "subtitle_path")], where)


def _options(row: Row, where: str) -> tuple[str, ...]:
    """From `candidates` (JSON) or option0 to option4 (parquet), where absent ones are "N/A"."""
    if "candidates" in row:
        return options_field(row, where, "candidates")
    texts = [row[name] for name in (f"option{i}" for i in range(5)) if row.get(name) not in (None, ABSENT)]
    return options_field({"option0..option4": texts}, where, "option0..option4")
