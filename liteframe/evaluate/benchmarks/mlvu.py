"""MLVU, multiple-choice tasks (arXiv 2406.04264): dev (7 tasks) and test (9), in two published layouts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from typing_extensions import override

from liteframe.evaluate.benchmarks.base import LETTERS, Benchmark, Dataset, Metric, Question, Result, by_group, share_of
from liteframe.evaluate.benchmarks.records import (
    answer_letter,
    find_files,
    find_video,
    listed_options,
    options_field,
    rows_of,
    text_field,
)
from liteframe.evaluate.intervals import mean_share
from liteframe.evaluate.letters import letter_before_parenthesis, ranked_letter

CHOICE_TASKS = ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning")
JSON = tuple(f"{top}json/[1-7]_*.json" for top in ("", "MLVU/"))


class MLVU(Benchmark):
    """`MLVU/MVLU` (JSON a task) or the copies made for lmms-eval (`sy1998/MLVU_dev`, parquet)."""

    name = "mlvu"
    title = "MLVU (multiple choice)"
    layout = "json/1_plotQA.json to 7_topic_reasoning.json with video/<task>/, or one parquet file with its videos"
    prompt = "{question}\n{options}\nOnly give the best option.\nBest option: ("
    option_format = "({letter}) {text}"
    headline = "M-Avg"

    @override
    def load(self, source: Path) -> Dataset:
        files = find_files(source, (*JSON, "data/*.parquet", "*.parquet"), self.layout)
        read = _from_parquet if files[0].suffix == ".parquet" else _from_json
        return Dataset(tuple(question for path in files for question in read(source, path)), tuple(files))

    def metrics(self, results: Sequence[Result], seed: int) -> dict[str, Metric]:
        """M-Avg, the headline, and what other harnesses make of the same replies."""
        tasks = by_group(results, "task")

        def ranked(question: Question, reply: str) -> bool:
            return ranked_letter(reply, question.letters) == question.answer

        def before(question: Question, reply: str) -> bool:
            return letter_before_parenthesis(reply) == question.answer

        found = {
            "M-Avg": Metric(
                "unweighted mean of the tasks' accuracies (paper, lmms-eval)",
                mean_share([share_of(part, ranked) for part in tasks.values()]),
            ),
            "M-Avg, authors' letter": Metric(
                "the same, the letter being what stands before the first ')' (the authors' script, VLMEvalKit)",
                mean_share([share_of(part, before) for part in tasks.values()]),
            ),
            "pooled, authors' letter": Metric(
                "all questions alike (the average that the authors' script prints)", share_of(results, before)
            ),
        }
        if pool := [r for r in results if r.question.groups["task"] != "order"]:
            found["pooled without order"] = Metric(
                "all questions alike but those of the order task (VLMEvalKit's M-Avg)", share_of(pool, before)
            )
        return found


def _from_json(folder: Path, path: Path) -> list[Question]:
    number, task = path.stem.split("_", 1)
    bases = [f"{top}video/{number}_{task}" for top in ("", "MLVU/")]
    if path.parent.parent != folder:
        bases.reverse()
    questions = []
    for n, (where, row) in enumerate(rows_of(path), 1):
        options = options_field(row, where, "candidates")
        questions.append(
            Question(
                id=f"{task}-{n}",
                video=find_video(folder, bases, text_field(row, where, "video"), where),
                text=text_field(row, where, "question"),
                options=options,
                letters=LETTERS[: len(options)],
                answer=answer_letter(text_field(row, where, "answer"), options, where, kind="text"),
                groups={"task": text_field(row, where, "question_type") if "question_type" in row else task},
            )
        )
    return questions


def _from_parquet(folder: Path, path: Path) -> list[Question]:
    """Rows whose question holds the options, and whose answer is a letter."""
    questions = []
    for n, (where, row) in enumerate(rows_of(path), 1):
        text = text_field(row, where, "question")
        answer = text_field(row, where, "answer")
        task = text_field(row, where, "task_type", "question_type")
        name = text_field(row, where, "video_name", "video")
        bases = (".", "video", "videos", *(f"video/{i}_{t}" for i, t in enumerate(CHOICE_TASKS, 1) if t == task))
        questions.append(
            Question(
                id=text_field(row, where, "question_id") if row.get("question_id") is not None else f"{task}-{n}",
                video=find_video(folder, bases, name, where),
                text=text,
                letters=listed_options(text, answer, where),
                answer=answer,
                groups={"task": task},
            )
        )
    return questions
