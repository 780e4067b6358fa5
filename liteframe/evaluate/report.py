"""Scores of a benchmark's replies, as JSON and as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from liteframe.evaluate.benchmarks.base import Benchmark, Question, Result, by_group, share_of
from liteframe.evaluate.intervals import METHOD, Share


def score_report(
    benchmark: Benchmark, questions: Sequence[Question], rows: dict[str, dict[str, Any]], seed: int
) -> dict[str, Any]:
    """Everything that is reported about a whole run.

    Args:
        benchmark: whose questions these are.
        questions: all of them, each with its row.
        rows: lines of answers.jsonl by question id.
        seed: of guesses.

    Returns:
        JSON-ready: accuracy with interval and count (a video that could not be read is a wrong answer), `of_read` (the
        same over readable videos; None if there are none), `failed` (questions without a readable video, by kind),
        `unanswered` (replies in which the rule finds nothing), `metrics`, `groups`, and how the figures were made.
    """
    results = [Result(question, rows[question.id].get("reply")) for question in questions]
    read = [result for result in results if result.reply is not None]

    def right(question: Question, reply: str) -> bool:
        return benchmark.reply_is_right(question, reply, seed)

    names = dict.fromkeys(name for question in questions for name in question.groups)
    kinds = Counter(rows[r.question.id]["error"]["kind"] for r in results if r.reply is None)
    metrics = benchmark.metrics(results, seed)
    return {
        "benchmark": benchmark.name,
        "headline": benchmark.headline or "accuracy",
        **asdict(share_of(results, right)),
        "of_read": asdict(share_of(read, right)) if read else None,
        "failed": {"questions": len(results) - len(read), "kinds": dict(kinds)},
        "unanswered": sum(benchmark.choice(r.question, r.reply or "", seed) == "" for r in read),
        "metrics": {name: {"meaning": metric.meaning, **asdict(metric.share)} for name, metric in metrics.items()},
        "groups": {
            name: {part: asdict(share_of(some, right)) for part, some in by_group(results, name).items()}
            for name in names
        },
        "rule": benchmark.rule,
        "interval": METHOD,
    }


def score_table(report: dict[str, Any], title: str) -> Table:
    """The report for people."""
    table = Table(title=title)
    table.add_column("")
    for column in ("%", "95 % interval", "questions", "videos"):
        table.add_column(column, justify="right")

    def row(name: str, values: dict[str, Any], **style: Any) -> None:
        share = Share(**{key: values[key] for key in ("accuracy", "low", "high", "count", "videos")})
        interval = f"{100 * share.low:.1f} to {100 * share.high:.1f}"
        table.add_row(name, f"{100 * share.accuracy:.1f}", interval, str(share.count), str(share.videos), **style)

    row("accuracy", report, style="bold")
    if report["failed"]["questions"] and report["of_read"]:
        row("accuracy, readable videos only", report["of_read"])
    for name, values in report["metrics"].items():
        row(name, values, style="bold" if name == report["headline"] else None)
    for name, parts in report["groups"].items():
        table.add_section()
        for part, values in parts.items():
            row(f"{name}: {part}", values)
    return table
