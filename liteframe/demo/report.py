"""What the demo shows at its end: a table, a picture of accuracy against time, and report.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.table import Table

from liteframe.toyworld.questions import QUESTION_TYPES

TEACHER = "teacher VLM"
POOLED = "teacher + WAP"
WIDE = 125  # terminal columns that the table with all question types needs
UNTRAINED = "student, untrained"
CTD = "student, CTD"
LMA = "student, CTD + LMA"
SYSTEMS = (TEACHER, POOLED, UNTRAINED, CTD, LMA)
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
