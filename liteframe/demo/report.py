"""What the demo shows at its end: a table, a picture of accuracy against time, and report.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

from liteframe.evaluate.benchmarks.base import Result
from liteframe.evaluate.benchmarks.own_questions import FreeForm
from liteframe.evaluate.intervals import Difference, paired_difference
from liteframe.toyworld.questions import QUESTION_TYPES

BENCHMARK = FreeForm()
TEACHER = "teacher VLM"
POOLED = "teacher + WAP"
WIDE = 125  # terminal columns that the table with all question types needs
UNTRAINED = "student, untrained"
CTD = "student, CTD"
LMA = "student, CTD + LMA"
SYSTEMS = (TEACHER, POOLED, UNTRAINED, CTD, LMA)
AT = {TEACHER: 8, LMA: 64}  # frames at which the two are compared: 8x as many for the student
STYLE = {TEACHER: ("o", "C0"), POOLED: ("s", "C2"), UNTRAINED: ("x", "C7"), CTD: ("^", "C1"), LMA: ("*", "C3")}


@dataclass(frozen=True)
class SystemResult:
    """One row: a system at a number of frames; times in milliseconds, accuracy as a share."""

    system: str
    frames: int
    tokens_per_frame: float
    encoder_ms: float
    prefill_ms: float
    accuracy: float
    error: float
    questions: int
    types: dict[str, float]

    @property
    def total_ms(self) -> float:
        """Encoder and prefill together."""
        return self.encoder_ms + self.prefill_ms

    def to_dict(self) -> dict[str, Any]:
        """A row of report.json, with the total time."""
        return {**asdict(self), "total_ms": self.total_ms}


@dataclass(frozen=True)
class Advantage:
    """By how much more often the aligned student is right than its teacher, at the frames of `AT`.

    Attributes:
        difference: of the two shares of right answers.
        standard_error: of the difference, question by question on the same videos, which are what is independent.
        by_seed: the difference with each seed.
    """

    difference: float
    standard_error: float
    by_seed: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """As report.json holds it."""
        return asdict(self)


def advantage(seeds: Sequence[tuple[Sequence[Result], Sequence[Result]]]) -> Advantage:
    """Compare two systems that were asked the same questions.

    Args:
        seeds: for each seed, results of the student and of the teacher.
    """
    numbered = list(enumerate(seeds))
    whole = _difference(numbered)
    by_seed = tuple(_difference([pair]).difference for pair in numbered)
    return Advantage(whole.difference, whole.standard_error, by_seed)


def _difference(seeds: Sequence[tuple[int, tuple[Sequence[Result], Sequence[Result]]]]) -> Difference:
    """Of the two systems over numbered seeds; a video is another one in each."""
    pairs = [
        (number, ours, theirs)
        for number, (student, teacher) in seeds
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return paired_difference(
        [_is_right(ours) for _, ours, _ in pairs],
        [_is_right(theirs) for _, _, theirs in pairs],
        [(number, ours.question.video) for number, ours, _ in pairs],
    )


def _is_right(result: Result) -> bool:
    return result.reply is not None and BENCHMARK.reply_is_right(result.question, result.reply)


def mean_results(seeds: Sequence[Sequence[SystemResult]]) -> list[SystemResult]:
    """The rows of several seeds as one table: means, the errors those of means of independent accuracies."""
    return [
        SystemResult(
            system=rows[0].system,
            frames=rows[0].frames,
            tokens_per_frame=rows[0].tokens_per_frame,
            encoder_ms=fmean(row.encoder_ms for row in rows),
            prefill_ms=fmean(row.prefill_ms for row in rows),
            accuracy=fmean(row.accuracy for row in rows),
            error=math.hypot(*(row.error for row in rows)) / len(rows),
            questions=sum(row.questions for row in rows),
            types={kind: fmean(row.types[kind] for row in rows) for kind in rows[0].types},
        )
        for rows in zip(*seeds, strict=True)
    ]


def _cells(r: SystemResult, types: Sequence[str]) -> list[str]:
    cells = [r.system, str(r.frames), f"{r.tokens_per_frame:g}", f"{r.encoder_ms:.1f}", f"{r.prefill_ms:.1f}"]
    cells += [f"{r.total_ms:.1f}", f"{100 * r.accuracy:.1f} ± {100 * r.error:.1f}"]
    return cells + [f"{100 * r.types[kind]:.0f}" for kind in types]


def as_table(results: Sequence[SystemResult], width: int) -> Table:
    """The results as a table for a terminal of `width` columns; a narrow one goes without the question types."""
    types = QUESTION_TYPES if width >= WIDE else ()
    table = Table(title="Held-out questions about videos that were never seen")
    table.add_column("system")
    for name in ("frames", "tokens/frame", "encoder ms", "prefill ms", "total ms", "accuracy %", *types):
        table.add_column(name, justify="right")
    previous = ""
    for r in results:
        if previous and r.system != previous:
            table.add_section()
        previous = r.system
        table.add_row(*_cells(r, types))
    return table


def as_markdown(results: Sequence[SystemResult]) -> str:
    """The same table in Markdown, for the README."""
    head = ["system", "frames", "tokens/frame", "encoder ms", "prefill ms", "total ms", "accuracy %", *QUESTION_TYPES]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for r in results:
        lines.append("| " + " | ".join(_cells(r, QUESTION_TYPES)) + " |")
    return "\n".join(lines) + "\n"


def plot(results: Sequence[SystemResult], path: Path) -> None:
    """Accuracy (± one standard error) against encoder + prefill time; the number at a point is its frames."""
    figure, axes = plt.subplots(figsize=(7.5, 5), constrained_layout=True)
    for system in SYSTEMS:
        rows = [r for r in results if r.system == system]
        if not rows:
            continue
        marker, colour = STYLE[system]
        times, shares = [r.total_ms for r in rows], [100 * r.accuracy for r in rows]
        errors = [100 * r.error for r in rows]
        size = 12 if marker == "*" else 7
        axes.errorbar(times, shares, errors, marker=marker, color=colour, markersize=size, capsize=3, label=system)
        for r in rows:
            axes.annotate(str(r.frames), (r.total_ms, 100 * r.accuracy), textcoords="offset points", xytext=(7, -11))
    axes.set_xscale("log")
    ticks = [
        t for t in (5, 10, 20, 50, 100, 200, 500, 1000, 2000) if any(0.4 * t < r.total_ms < 2.5 * t for r in results)
    ]
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("encoder + prefill, ms (log scale)")
    axes.set_ylabel("accuracy on held-out questions, %")
    axes.set_title("Frames (numbers) against time: fewer tokens a frame buy more frames")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def show(table: Sequence[SystemResult], gain: Advantage, answers: Sequence[Result], console: Console) -> None:
    """The end of the demo: a few of the student's answers, the table, and the comparison the project is about."""
    console.rule("[bold]Ask about a video")
    console.print(f"{answers[0].question.video}, {AT[LMA]} frames")
    for result in answers[:5]:
        question = result.question
        console.print(f"  {question.text}  ->  [bold]{result.reply}[/bold]  (right: {question.answer})")
    console.print(as_table(table, console.width))
    by = {(r.system, r.frames): r for r in table}
    teacher, student = by[TEACHER, AT[TEACHER]], by[LMA, AT[LMA]]
    console.print(
        f"At {AT[LMA] // AT[TEACHER]}x the frames ({AT[LMA]} against {AT[TEACHER]}) the aligned student takes "
        f"{student.total_ms / teacher.total_ms:.2f}x the teacher's time ({student.total_ms:.1f} against "
        f"{teacher.total_ms:.1f} ms, timed in turns) and is right on {100 * student.accuracy:.1f} % against "
        f"{100 * teacher.accuracy:.1f} %: {100 * gain.difference:+.1f} points, with a standard error of "
        f"{100 * gain.standard_error:.1f}, question by question on the same videos."
    )
    if len(gain.by_seed) > 1:
        console.print(f"By seed: {', '.join(f'{100 * difference:+.1f}' for difference in gain.by_seed)} points.")
