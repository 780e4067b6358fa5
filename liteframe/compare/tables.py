"""A comparison as Markdown: every point, the three readings, and what failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from liteframe.compare.points import Point, anchors, frontier, of_system, reading
from liteframe.compare.systems import LITEFRAME, NONE, SystemName
from liteframe.compare.times import STAGES
from liteframe.evaluate.intervals import Difference

HEAD = ("system", "frames", "tokens/frame", "tokens", *(f"{stage} ms" for stage in STAGES), "total ms", "accuracy %")
READINGS = {
    "frames": "Equal frames: each system at the frames of `none`.",
    "tokens": "Equal tokens: each system at the most frames with which the language model reads no more tokens of the "
    "video than with `none`.",
    "time": "Equal time: each system at the most frames with which the first token takes no longer than with `none`.",
}


def markdown(points: Sequence[Point], frames: Sequence[int], facts: Sequence[str]) -> str:
    """The whole page.

    Args:
        points: of all systems, those that failed included.
        frames: of the comparison.
        facts: sentences about how the figures were made.
    """
    parts = ["# Comparison", "\n".join(f"- {fact}" for fact in facts), _points(points, frames)]
    if known := anchors(points, frames):
        parts += [_reading(points, known, equal) for equal in READINGS]
    if failed := [point for point in points if point.failed]:
        parts += ["## Not measured", "\n".join(f"- {_named(point)}: {point.failed}" for point in failed)]
    return "\n\n".join(parts) + "\n"


def cells(point: Point, points: Sequence[Point]) -> list[str]:
    """A point as cells of HEAD and the two differences at equal frames."""
    times = ["" if point.times is None else f"{point.times[stage]:.1f}" for stage in (*STAGES, "total")]
    if point.share is None:
        return [point.system.label, str(point.frames), *[""] * 2, *times, "failed", "", ""]
    error = 100 * (point.share.high - point.share.low) / 2
    row = [point.system.label, str(point.frames), f"{point.tokens_per_frame:.3g}", f"{point.tokens:.4g}", *times]
    row.append(f"{point.percent:.1f} ± {error:.1f}")
    for name in (NONE, LITEFRAME):
        other = of_system(points, name, point.frames)
        row.append("" if other is None or other is point else difference(point.less(other)))
    return row


def difference(found: Difference) -> str:
    """Points of per cent with their standard error."""
    return f"{100 * found.difference:+.1f} ± {100 * found.standard_error:.1f}"


def _points(points: Sequence[Point], frames: Sequence[int]) -> str:
    best = frontier(points)
    rows = []
    for point in points:
        row = cells(point, points)
        rows.append([f"**{row[0]}**" if point in best else row[0], *row[1:]])
    legend = (
        "Accuracy with half of its 95 % interval; differences in points with their standard error, question by "
        "question with videos as what is independent, at equal frames. Bold: on the frontier of accuracy and time. "
        f"Times are medians, batch 1. Stages: {', '.join(STAGES)}."
    )
    return "\n\n".join(["## Points", legend, _table([*HEAD, f"against {NONE}", f"against {LITEFRAME}"], rows)])


def _reading(points: Sequence[Point], known: Sequence[Point], equal: str) -> str:
    columns: list[dict[SystemName, Point]] = [
        {point.system: point for point in reading(points, anchor, equal)} for anchor in known
    ]
    systems = dict.fromkeys(point.system for point in points if any(point.system in column for column in columns))
    rows = []
    for system in systems:
        row = [system.label]
        for anchor, column in zip(known, columns, strict=True):
            point = column.get(system)
            if point is None:
                row.append("–")
                continue
            shown = "" if equal == "frames" else f"{point.frames} f: "
            less = "" if point is anchor else f" ({difference(point.less(anchor))})"
            row.append(f"{shown}{point.percent:.1f}{less}")
        rows.append(row)
    costs = {"frames": "", "tokens": ", {0.tokens:.4g} tokens", "time": ", {0.total_ms:.1f} ms"}
    head = [f"{NONE}, {anchor.frames} frames" + costs[equal].format(anchor) for anchor in known]
    return "\n\n".join([f"## {READINGS[equal].split(':')[0]}", READINGS[equal], _table(["as", *head], rows)])


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _named(point: Point) -> str:
    return f"{point.system.label}, {point.frames} frames" if point.frames else point.system.label
