"""OVO-Bench: questions about the past, the present and what is still to come, each at its second (arXiv 2501.05510).

The code of `JoeLeelyf/OVO-Bench` is under the MIT License, its data under CC BY-NC-SA 4.0.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    by_group,
    share_of,
)
from liteframe.evaluate.benchmarks.records import Row, find_files, find_video, rows_of, text_field
from liteframe.evaluate.intervals import Share, mean_share
from liteframe.evaluate.letters import ranked_letter

CATEGORIES = {
    "backward": ("EPM", "ASI", "HLD"),
    "real-time": ("OCR", "ACR", "ATR", "STU", "FPD", "OJR"),
    "forward": ("REC", "SSR", "CRR"),
}
CATEGORY = {task: name for name, tasks in CATEGORIES.items() for task in tasks}
KINDS = {"REC": "count", "SSR": "yesno", "CRR": "yesno"}
SOURCES = ("src_videos", "data/src_videos", "videos", "data/videos", "data", ".")
CHUNKS = ("chunked_videos", "data/chunked_videos")
ONLY = "Give nothing else."


class OvoBench(Benchmark):
    """The annotation file and the videos, as downloaded and unpacked; or the chunks that its authors cut.

    A chunk ends at the query's second, rounded up. Prompts have the authors' layout in our words.
    """

    name = "ovo-bench"
    title = "OVO-Bench"
    layout = "ovo_bench_new.json and src_videos/ (or chunked_videos/), in the folder or in its data/"
    prompt = (
        f"\nQuestion: {{question}}\nOptions:\n{{options}}\n\nReply with the letter of the right option alone. {ONLY}\n"
    )
    prompts: Mapping[str, str] = {
        "REC": "\nPeople in this video may do one action several times. 'They' are all who do it, and each complete "
        "action counts as one. Count how often it is done in total, by whomever.\n{question}\n"
        f"Reply with a single number (such as 0, 1, 2). {ONLY}\n",
        "SSR": "\nThis video is a tutorial of several steps, of which this is one:\n{question}\n"
        f"Is this step being done right now? Reply with Yes or No. {ONLY}\n",
        "CRR": "\nThis question is about the newest frames, at the end of the video:\n{question}\n"
        f"Is what was shown, the newest frames above all, enough to answer it? Reply with Yes or No. {ONLY}\n",
    }
    option_format, option_separator = "{letter}. {text};", " "
    headline = "total"
    rule = "the authors': the right letter anywhere; all digits as one number; 'Yes' or 'No' anywhere"

    @override
    def load(self, source: Path) -> Dataset:
        files = find_files(source, ("ovo_bench_new.json", "data/ovo_bench_new.json"), self.layout)
        return Dataset(
            tuple(q for where, row in rows_of(files[0]) for q in _questions(source, where, row)), tuple(files)
        )

    @override
    def choice(self, question: Question, reply: str, seed: int) -> str:
        """All that its authors' rule finds: "AB" where both letters stand somewhere, "Yes No" where both words do."""
        match _kind(question):
            case "letter":
                return "".join(letter for letter in question.letters if letter in reply)
            case "count":
                return "".join(re.findall("[0-9]", reply))
            case _:
                return " ".join(word for word in ("Yes", "No") if word in reply or reply == word[0])

    @override
    def right(self, question: Question, choice: str) -> bool:
        return choice == question.answer if _kind(question) == "count" else question.answer in choice

    def metrics(self, results: Sequence[Result], seed: int) -> dict[str, Metric]:
        """Means over tasks and categories, of the authors' rule and of a strict one."""

        def loose(question: Question, reply: str) -> bool:
            return self.reply_is_right(question, reply, seed)

        return {
            **_means(results, loose, ""),
            **_means(results, strict, ", strict"),
            "strict": Metric(
                "all queries alike; the letter in the most telling place, the first number or the first word",
                share_of(results, strict),
            ),
        }

    @override
    def constants(self, question: Question) -> dict[str, str]:
        match _kind(question):
            case "letter":
                found = {letter: letter for letter in question.letters}
                unable = [LETTERS[i] for i, text in enumerate(question.options) if text.lower().startswith("unable")]
                return {**found, "Unable to answer": unable[0] if unable else ""}
            case "count":
                return {str(number): str(number) for number in range(6)}
            case _:
                return {"Yes": "Yes", "No": "No"}


def strict(question: Question, reply: str) -> bool:
    """Whether the letter in the most telling place, the first number or the first word is the answer."""
    match _kind(question):
        case "letter":
            return ranked_letter(reply, question.letters) == question.answer
        case "count":
            number = re.search(r"\d+", reply)
            return number is not None and int(number[0]) == int(question.answer)
        case _:
            word = re.match(r"\W*(\w+)", reply)
            return word is not None and word[1].lower() in (question.answer.lower(), question.answer[0].lower())


def _means(results: Sequence[Result], right: Callable[[Question, str], bool], suffix: str) -> dict[str, Metric]:
    tasks = {task: share_of(part, right) for task, part in by_group(results, "task").items()}
    parts = {name: [tasks[task] for task in names if task in tasks] for name, names in CATEGORIES.items()}
    means = {name: mean_share(shares) for name, shares in parts.items() if shares}
    found: dict[str, tuple[str, Share]] = {}
    if len(means) == len(CATEGORIES):
        found["total"] = (
            "mean of the three categories (the authors' present script)",
            mean_share(list(means.values())),
        )
    found["mean of tasks"] = ("mean of the tasks (the authors' former script)", mean_share(list(tasks.values())))
    if {"backward", "real-time"} <= means.keys():
        found["backward + real-time"] = ("mean of the two", mean_share([means["backward"], means["real-time"]]))
    found |= {name: ("mean of its tasks", share) for name, share in means.items()}
    for task, part in by_group(results, "task").items():
        if task in KINDS:
            items = _by_item(part)
            found[f"{task} by item"] = ("mean of its items", mean_share([share_of(some, right) for some in items]))
    return {f"{name}{suffix}": Metric(meaning, share) for name, (meaning, share) in found.items()}


def _by_item(results: Sequence[Result]) -> list[list[Result]]:
    items: dict[str, list[Result]] = {}
    for result in results:
        question = result.question
        items.setdefault(question.item if isinstance(question, StreamQuestion) else question.id, []).append(result)
    return list(items.values())


def _kind(question: Question) -> str:
    return question.kind if isinstance(question, StreamQuestion) else "letter"


def _questions(folder: Path, where: str, row: Row) -> Iterator[StreamQuestion]:
    """Those of one item: one of multiple choice, or each query of a forward one."""
    task, name = text_field(row, where, "task"), text_field(row, where, "id")
    if task not in CATEGORY:
        raise ValueError(f"{where}: the task {task!r} is unknown; OVO-Bench has {', '.join(CATEGORY)}")
    video = text_field(row, where, "video")
    if task not in KINDS:
        yield _question(folder, where, name, task, video, row.get("realtime"), **_choices(row, where))
        return
    info = row.get("test_info")
    if not isinstance(info, list) or not info or not all(isinstance(query, dict) for query in info):
        raise ValueError(f"{where}: 'test_info' of a {task} item must be a list of queries, got {info!r}")
    for number, query in enumerate(info):
        place = f"{where}: query {number} of 'test_info'"
        if task == "REC":
            text, answer = f"How many times did they {text_field(row, where, 'activity')}?", _count(query, place)
        else:
            text = text_field(query, place, "step") if task == "SSR" else text_field(row, where, "question")
            answer = _yes_no(query, place)
        given = {"text": text, "answer": answer, "kind": KINDS[task], "item": name}
        yield _question(folder, place, f"{name}_{number}", task, video, query.get("realtime"), **given)


def _question(
    folder: Path, where: str, name: str, task: str, video: str, realtime: object, **given: object
) -> StreamQuestion:
    if isinstance(realtime, bool) or not isinstance(realtime, int | float) or not 0 <= realtime <= sys.maxsize:
        raise ValueError(f"{where}: 'realtime' must be seconds, 0 or more, got {realtime!r}")
    source = find_video(folder, SOURCES, video, where)
    end: float | None = float(math.ceil(realtime))
    if not Path(source).is_file() and Path(chunk := find_video(folder, CHUNKS, name, where)).is_file():
        source, end = chunk, None  # which ends there
    groups = {"task": task, "category": CATEGORY[task]}
    return StreamQuestion(id=name, video=source, end=end, task=task, groups=groups, **given)  # type: ignore[arg-type]


def _choices(row: Row, where: str) -> dict[str, object]:
    """`gt` is what counts: in a third of the published items 'answer' is written otherwise than the option."""
    options, right = row.get("options"), row.get("gt")
    if not isinstance(options, list) or not 2 <= len(options) <= 5 or not all(isinstance(x, str) for x in options):
        raise ValueError(f"{where}: 'options' must be a list of 2 to 5 texts, got {options!r}")
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(options):
        raise ValueError(f"{where}: 'gt' must be the number of an option, 0 to {len(options) - 1}, got {right!r}")
    letters = LETTERS[: len(options)]
    return {
        "text": text_field(row, where, "question"),
        "options": tuple(options),
        "letters": letters,
        "answer": letters[right],
    }


def _count(query: Row, where: str) -> str:
    count = query.get("count")
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ValueError(f"{where}: 'count' must be a whole number, 0 or more, got {count!r}")
    return str(count)


def _yes_no(query: Row, where: str) -> str:
    kind = query.get("type")
    if isinstance(kind, bool) or kind not in (0, 1):
        raise ValueError(f"{where}: 'type' must be 1 (Yes) or 0 (No), got {kind!r}")
    return "Yes" if kind else "No"
