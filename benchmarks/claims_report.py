"""How benchmarks/claims.py judges: a figure in words and a verdict, from its cells or from other commands' records.

A claim holds where the difference is more than two standard errors above zero, is refuted where it is as far below, and
where it is neither, nothing is shown.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from claims_plan import SEEDS, VARIANTS, WHOLE, plan

from liteframe.evaluate.intervals import Difference, paired_difference
from liteframe.texts import read_json

HOLDS, REFUTED, OPEN = "holds", "**refuted**", "not shown"


class Finding(NamedTuple):
    """A figure in words, and a verdict."""

    figure: str
    verdict: str


@dataclass(frozen=True)
class Record:
    """What was measured: the cells of claims.json, and the repository, for what other commands have recorded."""

    cells: Sequence[Mapping[str, Any]]
    root: Path

    def of(self, kind: str, name: str = "") -> list[Mapping[str, Any]]:
        """Cells of a kind, by seed or world; empty unless all are there."""
        found = [row for row in self.cells if (row["cell"]["kind"], row["cell"]["name"]) == (kind, name)]
        wanted = sum((cell.kind, cell.name) == (kind, name) for cell in plan())
        return sorted(found, key=lambda row: row["cell"]["seed"]) if len(found) == wanted else []

    def file(self, name: str) -> Any:
        """A record of another command."""
        return read_json(self.root / name, "it belongs to the repository")

    def answers(self, name: str, frames: int = WHOLE) -> list[str]:
        """Of a student, a string a seed; of a system without training, one: a 1 or a 0 for each question."""
        if name in VARIANTS:
            return [row["right"][str(frames)] for row in self.of("student", name)]
        worlds = self.of("reduced")
        known = worlds and all(name in row["right"] for row in worlds)
        return ["".join(row["right"][name] for row in worlds)] if known else []

    def percent(self, name: str, frames: int = WHOLE) -> str:
        """Accuracy over all seeds."""
        return f"{100 * statistics.mean(answer == '1' for seed in self.answers(name, frames) for answer in seed):.1f}"

    def less(self, name: str, other: str, frames: tuple[int, int] = (WHOLE, WHOLE)) -> Difference | None:
        """By how much more often one is right than another, by question; all seeds of a video are one cluster."""
        ours, theirs = self.answers(name, frames[0]), self.answers(other, frames[1])
        if not ours or not theirs:
            return None
        seeds = max(len(ours), len(theirs))
        right = [[answer == "1" for answer in "".join(known * (seeds // len(known)))] for known in (ours, theirs)]
        videos = [number // 5 for number in range(len(ours[0]))]
        return paired_difference(right[0], right[1], videos * seeds)

    def cosine(self, name: str) -> float:
        """To its own target, mean over the seeds."""
        return statistics.mean(row["cosine"] for row in self.of("student", name))


Judge = Callable[[Record], Finding | None]


def judged(found: Difference, bar: float = 0.0) -> str:
    """Whether it is above the bar."""
    above = found.difference - bar
    return HOLDS if above > 2 * found.standard_error else REFUTED if above < -2 * found.standard_error else OPEN


def together(verdicts: Sequence[str]) -> str:
    """Of a claim with several parts: one that is refuted refutes it."""
    return next((verdict for verdict in (REFUTED, OPEN) if verdict in verdicts), HOLDS)


def points(found: Difference) -> str:
    """In points, with its standard error."""
    return f"{100 * found.difference:+.1f} ± {100 * found.standard_error:.1f}"


def better(name: str, other: str, frames: tuple[int, int] = (WHOLE, WHOLE)) -> Judge:
    """That one system is right more often than another."""

    def judge(record: Record) -> Finding | None:
        found = record.less(name, other, frames)
        if found is None:
            return None
        figure = f"{record.percent(name, frames[0])} against {record.percent(other, frames[1])} %: {points(found)}"
        if {name, other} <= VARIANTS.keys():
            pairs = zip(record.answers(name, frames[0]), record.answers(other, frames[1]), strict=True)
            seeds = [100 * (ours.count("1") - theirs.count("1")) / len(ours) for ours, theirs in pairs]
            figure += f" (by seed {', '.join(f'{value:+.1f}' for value in seeds)})"
            if name != other:
                figure += f"; cosine to its own target {record.cosine(name):.3f} against {record.cosine(other):.3f}"
        return Finding(figure, judged(found))

    return judge


def best(names: Mapping[str, int], others: Callable[[Record], Mapping[str, int]]) -> Judge:
    """That one system, at so many frames, is right more often than each of several at theirs."""
    ((name, frames),) = names.items()

    def judge(record: Record) -> Finding | None:
        known = others(record)
        found = {other: record.less(name, other, (frames, count)) for other, count in known.items()}
        there = {other: less for other, less in found.items() if less is not None}
        if not there or len(there) < len(found):
            return None
        rows = sorted(there.items(), key=lambda row: row[1].difference)
        listed = ", ".join(
            f"{other.partition('@')[0]} {record.percent(other, known[other])} ({points(less)})" for other, less in rows
        )
        figure = f"{name.partition('@')[0]} {record.percent(name, frames)} %; less each of the others: {listed}"
        return Finding(figure, together([judged(less) for less in there.values()]))

    return judge


def falling(names: Sequence[str]) -> Judge:
    """That each system is right more often than the next."""

    def judge(record: Record) -> Finding | None:
        steps = [record.less(one, other) for one, other in pairwise(names)]
        known = [step for step in steps if step is not None]
        if len(known) < len(steps):
            return None
        figure = ", ".join(f"{name} {record.percent(name)}" for name in names)
        return Finding(f"%: {figure}; steps {', '.join(map(points, known))}", together([judged(s) for s in known]))

    return judge


def keeps(name: str, share: float) -> Judge:
    """That a reducer keeps a share of the dense model's accuracy."""

    def judge(record: Record) -> Finding | None:
        found = record.less(name, f"none@{WHOLE}")
        if found is None:
            return None
        ours, dense = record.percent(name), record.percent(f"none@{WHOLE}")
        kept = 100 * float(ours) / float(dense)
        allowed = (share - 1) * float(dense) / 100
        return Finding(f"{ours} of {dense} %, {kept:.1f} % of it ({points(found)} points)", judged(found, allowed))

    return judge


def of_seeds(values: Sequence[float], what: str, *, backwards: bool = False) -> Finding:
    """A difference by seed, in points, where two standard errors of its mean decide.

    Args:
        values: one a seed.
        what: they are.
        backwards: the claim is that it is not above zero, and holds unless it is.
    """
    mean, error = statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5
    verdict = HOLDS if mean > 2 * error else REFUTED if mean < -2 * error else OPEN
    if backwards:
        verdict = REFUTED if verdict == HOLDS else HOLDS
    return Finding(f"{what}: {mean:+.1f} ± {error:.1f} (by seed {', '.join(f'{v:+.1f}' for v in values)})", verdict)


def questions(setup: Mapping[str, Any]) -> int:
    """Of all worlds, five a video."""
    return 5 * len(SEEDS) * setup["test_scenes"]
