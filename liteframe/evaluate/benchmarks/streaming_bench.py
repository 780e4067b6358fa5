"""StreamingBench: questions asked while a video runs (arXiv 2411.03628; `THUNLP-MT/StreamingBench`, MIT License)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from liteframe.data.importers.base import read_list
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
from liteframe.evaluate.benchmarks.records import Row, answer_letter, find_video, options_field, text_field
from liteframe.evaluate.intervals import Share
from liteframe.evaluate.letters import ranked_letter

PARTS = {"real": "real-time visual", "omni": "omni-source", "sqa": "sequential"}
PLACES = ("", "src/data/", "data/")
CONTEXT = 60.0  # seconds before a question that its authors' main table shows
LATE = 4  # seconds after the right moment until which a proactive question is polled
IN_TIME = 2.0  # seconds by which the moment may be missed
ENDING = "The letter of the best option is:"
ASSISTANT = (
    "You answer questions about video. These are frames of one, and a question with four options. Look closely, and "
    "reply with the letter (A, B, C or D) of the best option alone."
)


class StreamingBench(Benchmark):
    """The real-time, omni-source and sequential questions, about the 60 seconds before each (the authors' main table).

    Sound is not heard. Sequential questions are told the earlier ones with their right answers, as their authors do.
    """

    name = "streamingbench"
    title = "StreamingBench, 60 s"
    layout = (
        "questions_real.json, questions_omni.json or questions_sqa.json (in src/data/, data/ or here) and the videos"
    )
    prompt = f"{ASSISTANT}\n\nQuestion: {{question}}\n\nOptions:\n{{options}}\n\n{ENDING}"
    rule = "the authors': the first character is the letter"
    context: float | None = CONTEXT

    @override
    def load(self, source: Path) -> Dataset:
        files = {part: path for part in PARTS if (path := _file(source, (f"questions_{part}.json",)))}
        if not files:
            raise ValueError(f"{source}: expected {self.layout}")
        questions = [q for part, path in files.items() for q in self._part(source, part, path)]
        return Dataset(tuple(questions), tuple(files.values()))

    def _part(self, folder: Path, part: str, path: Path) -> Iterator[StreamQuestion]:
        number = 0
        for where, records in _groups(path, nested=part == "sqa"):
            earlier: list[str] = []
            for place, record, row in _asked(where, records):
                number += 1
                options = _options(row, place)
                answer = answer_letter(text_field(row, place, "answer"), options, place, kind="letter")
                second = _clock(row, place, "time_stamp")
                text = text_field(row, place, "question")
                told = _history(earlier) if part == "sqa" else ""
                earlier.append(f"At {second:g} s: {text} {_listed(options)} Answer: {answer}.")
                start = None if self.context is None else max(0.0, second - self.context)
                yield StreamQuestion(
                    id=f"{part}-{number}",
                    video=_video(folder, part, record, place),
                    text=told + text,
                    options=options,
                    letters=LETTERS[: len(options)],
                    answer=answer,
                    groups={"part": PARTS[part], "task": text_field(row, place, "task_type")},
                    start=start or None,
                    end=second,
                )

    @override
    def choice(self, question: Question, reply: str, seed: int) -> str:
        return reply[:1]

    def metrics(self, results: Sequence[Result], seed: int) -> dict[str, Metric]:
        """A strict rule. The authors leave unanswered questions out of the total; here they are wrong, and counted."""

        def right(question: Question, reply: str) -> bool:
            return ranked_letter(reply, question.letters) == question.answer

        return {"strict": Metric("the letter in the most telling place", share_of(results, right))}

    @override
    def constants(self, question: Question) -> dict[str, str]:
        return {letter: letter for letter in question.letters}


class StreamingBenchAll(StreamingBench):
    """The same, about all that was shown before each question."""

    name = "streamingbench-all"
    title = "StreamingBench, all that was shown"
    context = None


class StreamingBenchProactive(Benchmark):
    """Questions to be answered when their moment has come, which the model is asked every second.

    As its authors do it: the video begins with the question, the poll names the answer that is expected, "yes" anywhere
    in the reply ends the polls, and then the question itself is asked. The reply that is kept is `27 s: what it said`.
    """

    name = "streamingbench-proactive"
    title = "StreamingBench, proactive"
    layout = "questions_proactive_50.json or questions_proactive.json (in src/data/, data/ or here) and the videos"
    prompt = "{question}"
    max_new_tokens = 32
    headline = "time"
    rule = f"said within {IN_TIME:g} s of the moment"
    polls = True

    @override
    def load(self, source: Path) -> Dataset:
        path = _file(source, ("questions_proactive_50.json", "questions_proactive.json"))
        if path is None:
            raise ValueError(f"{source}: expected {self.layout}")
        asked = [found for where, records in _groups(path, nested=False) for found in _asked(where, records)]
        return Dataset(tuple(_proactive(source, n, *found) for n, found in enumerate(asked, 1)), (path,))

    @override
    def choice(self, question: Question, reply: str, seed: int) -> str:
        """The second at which the polls ended."""
        found = re.match(r"([\d.]+) s:", reply)
        return found[1] if found else ""

    @override
    def right(self, question: Question, choice: str) -> bool:
        assert isinstance(question, StreamQuestion)
        return choice != "" and abs(float(choice) - (question.polls[-1] - LATE)) <= IN_TIME

    def metrics(self, results: Sequence[Result], seed: int) -> dict[str, Metric]:
        """Whether the moment was right, and whether the answer was, too."""

        def time(question: Question, reply: str) -> bool:
            return self.reply_is_right(question, reply, seed)

        def answer(question: Question, reply: str) -> bool:
            return time(question, reply) and question.answer in reply.split(" s:", 1)[1]

        meanings: tuple[tuple[str, str, Share], ...] = (
            ("time", f"the model said yes within {IN_TIME:g} s of the moment", share_of(results, time)),
            ("answer", "and what it then said holds the expected words", share_of(results, answer)),
        )
        return {name: Metric(meaning, share) for name, meaning, share in meanings}

    @override
    def constants(self, question: Question) -> dict[str, str]:
        assert isinstance(question, StreamQuestion)
        first, last = question.polls[0], question.polls[-1]
        return {"yes": f"{first:g} s:", "no": f"{last:g} s:"}


def _proactive(folder: Path, number: int, where: str, record: Row, row: Row) -> StreamQuestion:
    asked, moment = _clock(row, where, "time_stamp"), _clock(row, where, "ground_truth_time_stamp")
    if moment < asked:
        raise ValueError(f"{where}: 'ground_truth_time_stamp' ({moment:g} s) is before 'time_stamp' ({asked:g} s)")
    text, output = text_field(row, where, "question"), text_field(row, where, "ground_truth_output")
    polls = tuple(asked + n for n in range(1, round(moment - asked) + LATE + 1))
    return StreamQuestion(
        id=f"proactive-{number}",
        video=_video(folder, "proactive", record, where),
        text=text,
        answer=output,
        start=asked or None,
        end=polls[-1],
        kind="proactive",
        polls=polls,
        poll=f'{text} Is now the right time to say "{output}"? Reply with yes or no.',
    )


def _file(folder: Path, names: Sequence[str]) -> Path | None:
    paths = [folder / f"{place}{name}" for name in names for place in PLACES]
    return next((path for path in paths if path.is_file()), None)


def _groups(path: Path, *, nested: bool) -> Iterator[tuple[str, list[Any]]]:
    """Records of one video that belong together, with their place: those of a list in the list, or each alone."""
    for where, entry in read_list(path):
        if nested != isinstance(entry, list):
            expected = "a list of the records of one video" if nested else "a record"
            raise ValueError(f"{where}: expected {expected}, got a {type(entry).__name__}; is it another part's file?")
        yield where, entry if nested else [entry]


def _asked(where: str, records: Sequence[Any]) -> Iterator[tuple[str, Row, Row]]:
    """Each question of records, with its place and its record."""
    for record in records:
        rows = record.get("questions") if isinstance(record, dict) else None
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise ValueError(
                f"{where}: expected a record with 'video_path' and a list of 'questions', got {record!r:.200}"
            )
        for number, row in enumerate(rows, 1):
            yield f"{where}: question {number}", record, row


def _video(folder: Path, part: str, record: Row, where: str) -> str:
    name = text_field(record, where, "video_path")
    bases = [f"{place}{inner}" for place in PLACES for inner in ("", part, f"{part}/videos")]
    found = find_video(folder, bases, name, where)
    return found if Path(found).is_file() else find_video(folder, [*bases, "videos"], Path(name).name, where)


def _options(row: Row, where: str) -> tuple[str, ...]:
    """Their letters may be missing, or stand without a space behind them."""
    texts = row.get("options")
    carried = isinstance(texts, list) and all(
        isinstance(text, str) and text.strip().startswith(f"{letter}.")
        for letter, text in zip(LETTERS, texts, strict=False)
    )
    return options_field(row, where, "options", bare=carried)


def _listed(options: Sequence[str]) -> str:
    return " ".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))


def _history(earlier: Sequence[str]) -> str:
    if not earlier:
        return ""
    return (
        f"Earlier questions about this video, and their answers: {' '.join(earlier)} Do not mix them up with this one: "
    )


def _clock(row: Row, where: str, name: str) -> float:
    """Seconds of "HH:MM:SS"."""
    text = text_field(row, where, name)
    if not re.fullmatch(r"\d{1,2}:\d{1,2}:\d{1,2}(\.\d+)?", text):
        raise ValueError(f"{where}: '{name}' must be a time such as 00:01:30, got {text!r}")
    hours, minutes, seconds = text.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
