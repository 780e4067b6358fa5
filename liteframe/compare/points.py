"""A system at a number of frames, what it cost and how often it was right; differences, readings and the frontier."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from liteframe.compare.systems import LITEFRAME, NONE, SystemName
from liteframe.evaluate.benchmarks.base import Benchmark, Question
from liteframe.evaluate.intervals import Difference, Share, paired_difference

SLACK = 1.01  # by which what costs as much may cost more: floor and the last window of a video


@dataclass(frozen=True)
class Point:
    """A system at a number of frames.

    Attributes:
        system: which.
        frames: that were asked for of each video; 0 for a system without video.
        share: accuracy with its interval; None where the system failed.
        right: by question id, in the benchmark's order.
        videos: of the questions, in the same order.
        groups: accuracy by a question's groups, `{"type": {"colour": 0.5}}`.
        tokens: of a video that the language model read, mean over questions.
        tokens_per_frame: the same over the frames that were read.
        space: in which a reducer acted.
        times: milliseconds of `times.STAGES`, "total" and "total_p90", and "peak_mib"; None where it was not timed.
        unread: questions whose video could not be read; they count as wrong.
        failed: why there is no accuracy, or no time.
    """

    system: SystemName
    frames: int
    share: Share | None = None
    right: Mapping[str, bool] = field(default_factory=dict)
    videos: Sequence[str] = ()
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    tokens: float = 0.0
    tokens_per_frame: float = 0.0
    space: str | None = None
    times: Mapping[str, Any] | None = None
    unread: int = 0
    failed: str | None = None

    @property
    def total_ms(self) -> float | None:
        """From pixels to the first token."""
        return None if self.times is None else self.times["total"]

    @property
    def percent(self) -> float:
        """Accuracy in per cent; NaN where there is none."""
        return math.nan if self.share is None else 100 * self.share.accuracy

    def less(self, other: Point) -> Difference:
        """By how much more often it is right than another system, question by question."""
        return paired_difference(list(self.right.values()), list(other.right.values()), self.videos)


def point_of(
    system: SystemName,
    frames: int,
    benchmark: Benchmark,
    questions: Sequence[Question],
    rows: Mapping[str, Mapping[str, Any]],
    report: Mapping[str, Any],
    **facts: Any,
) -> Point:
    """A point from lines of answers.jsonl, one a question, and what `score_report` says of them.

    Args:
        system: whose answers they are.
        frames: of the point.
        benchmark: whose questions these are.
        questions: all of them.
        rows: by question id.
        report: of `score_report`.
        **facts: further attributes.
    """
    share = Share(**{name: report[name] for name in ("accuracy", "low", "high", "count", "videos")})
    read = [rows[question.id] for question in questions if rows[question.id].get("reply") is not None]
    frames_read = sum(row["frames"] for row in read)
    tokens = sum(row["tokens"] for row in read)
    return Point(
        system,
        frames,
        share,
        {question.id: bool(rows[question.id]["right"]) for question in questions},
        [question.video for question in questions],
        {name: {part: of["accuracy"] for part, of in parts.items()} for name, parts in report["groups"].items()},
        tokens / len(read) if read else 0.0,
        tokens / frames_read if frames_read else 0.0,
        unread=len(questions) - len(read),
        **facts,
    )


EQUALS: dict[str, Callable[[Point], Any]] = {
    "frames": lambda point: point.frames,
    "tokens": lambda point: point.tokens,
    "time": lambda point: point.total_ms,
}


def frontier(points: Sequence[Point]) -> list[Point]:
    """Points that no other beats: none is as accurate in as little time; by time."""
    best: list[Point] = []
    timed = [(point.times["total"], -point.percent, point) for point in points if point.share and point.times]
    for _, _, point in sorted(timed, key=lambda row: row[:2]):
        if not best or point.percent > best[-1].percent:
            best.append(point)
    return best


def reading(points: Sequence[Point], anchor: Point, equal: str) -> list[Point]:
    """Of each system, the point with the most frames that costs no more than a point of another system.

    The choice looks at the cost alone, never at accuracy. A system of which none is so cheap is left out, and what has
    no video.

    Args:
        points: of all systems.
        anchor: what they are compared with.
        equal: "frames", "tokens" (of the language model) or "time" (to the first token).
    """
    cost = EQUALS[equal]
    limit = cost(anchor)
    found: dict[SystemName, Point] = {}
    for point in points:
        spent = cost(point)
        if point.share is None or limit is None or spent is None or not 0 < spent <= limit * SLACK:
            continue
        if not point.frames or (equal == "frames" and point.frames != anchor.frames):
            continue
        if point.system not in found or found[point.system].frames < point.frames:
            found[point.system] = point
    return list(found.values())


def of_system(points: Sequence[Point], name: str, frames: int) -> Point | None:
    """A system's point with an accuracy at a number of frames, if there is one."""
    found = (point for point in points if str(point.system) == name and point.frames == frames and point.share)
    return next(found, None)


def as_json(points: Sequence[Point], frames: Sequence[int]) -> dict[str, Any]:
    """Points, differences and readings, JSON-ready."""
    best = frontier(points)
    rows = []
    for point in points:
        row: dict[str, Any] = {
            "system": str(point.system),
            "frames": point.frames,
            "space": point.space,
            **({} if point.share is None else asdict(point.share)),
            "tokens": point.tokens,
            "tokens_per_frame": point.tokens_per_frame,
            "times_ms": point.times,
            "on_frontier": point in best,
            "groups": point.groups,
            "unread_questions": point.unread,
            "failed": point.failed,
        }
        for name in (NONE, LITEFRAME):
            for count in [point.frames] if point.frames else frames:
                other = of_system(points, name, count)
                if point.share is not None and other is not None and other is not point:
                    row[f"against {name}, {count} frames"] = asdict(point.less(other))
        rows.append(row)
    readings = {equal: [_reading(points, anchor, equal) for anchor in anchors(points, frames)] for equal in EQUALS}
    return {"points": rows, "readings": readings}


def anchors(points: Sequence[Point], frames: Sequence[int]) -> list[Point]:
    """The dense Video LLM at each number of frames."""
    return [point for count in frames if (point := of_system(points, NONE, count)) is not None]


def _reading(points: Sequence[Point], anchor: Point, equal: str) -> dict[str, Any]:
    cost = EQUALS[equal]
    found = [
        {"system": str(point.system), "frames": point.frames, "cost": cost(point), **asdict(point.less(anchor))}
        for point in reading(points, anchor, equal)
    ]
    return {"as none at": anchor.frames, "cost": cost(anchor), "points": found}
