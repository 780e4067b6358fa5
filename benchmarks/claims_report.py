"""How benchmarks/claims.py judges: a figure in words and a verdict, from its cells or from other commands' records.

A claim holds where the difference is more than two standard errors above zero, is refuted where it is as far below, and
where it is neither, nothing is shown.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from claims_plan import SALIENCIES, SEEDS, VARIANTS, WHOLE, plan

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
    root: Path = Path()

    def of(self, kind: str, name: str = "") -> list[Mapping[str, Any]]:
        """Cells of a kind, by seed or world; but for students, empty unless all are there."""
        found = [row for row in self.cells if (row["cell"]["kind"], row["cell"]["name"]) == (kind, name)]
        wanted = sum((cell.kind, cell.name) == (kind, name) for cell in plan())
        whole = kind == "student" or len(found) == wanted
        return sorted(found, key=lambda row: row["cell"]["seed"]) if whole else []

    def file(self, name: str) -> Any:
        """A record of another command."""
        return read_json(self.root / name, "it belongs to the repository")

    def answers(self, name: str, frames: int = WHOLE) -> dict[int, str]:
        """A 1 or a 0 for each question, by seed; of a system without training, the same for each seed."""
        if name in VARIANTS:
            return {row["cell"]["seed"]: row["right"][str(frames)] for row in self.of("student", name)}
        if name in SALIENCIES:
            return {seed: row["right"][str(frames)] for row in self.of("pooled", name) for seed in SEEDS}
        worlds = self.of("reduced")
        known = worlds and all(name in row["right"] for row in worlds)
        return dict.fromkeys(SEEDS, "".join(row["right"][name] for row in worlds)) if known else {}

    def percent(self, name: str, frames: int = WHOLE, seeds: Collection[int] = SEEDS) -> str:
        """Accuracy over these seeds, as far as they are there."""
        right = "".join(answers for seed, answers in self.answers(name, frames).items() if seed in seeds)
        return f"{100 * right.count('1') / len(right):.1f}"

    def seeds(self, *names: str) -> list[int]:
        """Those that all of these systems have."""
        return [seed for seed in SEEDS if all(seed in self.answers(name) for name in names)]

    def less(self, name: str, other: str, frames: tuple[int, int] = (WHOLE, WHOLE)) -> Difference | None:
        """By how much more often one is right than another, by question; all seeds of a video are one cluster."""
        seeds, trained = self.seeds(name, other), {name, other} & VARIANTS.keys()
        if not seeds:
            return None
        seeds = seeds if trained else seeds[:1]
        right = [
            [answer == "1" for seed in seeds for answer in self.answers(system, count)[seed]]
            for system, count in ((name, frames[0]), (other, frames[1]))
        ]
        videos = [number // 5 for number in range(len(right[0]) // len(seeds))]
        return paired_difference(right[0], right[1], videos * len(seeds))

    def note(self, *names: str) -> str:
        """How many seeds a figure has, where these are not all."""
        count = len(self.seeds(*names))
        return "" if count == len(SEEDS) else f", {count} of {len(SEEDS)} seeds"

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
        seeds = record.seeds(name, other)
        ours, theirs = (
            record.percent(system, count, seeds) for system, count in zip((name, other), frames, strict=True)
        )
        figure = f"{ours} against {theirs} %: {points(found)}"
        if {name, other} <= VARIANTS.keys():
            pairs = [(record.answers(name, frames[0])[seed], record.answers(other, frames[1])[seed]) for seed in seeds]
            by_seed = [100 * (one.count("1") - two.count("1")) / len(one) for one, two in pairs]
            figure += f" (by seed {', '.join(f'{value:+.1f}' for value in by_seed)})" if len(seeds) > 1 else ""
            if name != other:
                figure += f"; cosine to its own target {record.cosine(name):.3f} against {record.cosine(other):.3f}"
        return Finding(figure, judged(found) + record.note(name, other))

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
        return Finding(figure, together([judged(less) for less in there.values()]) + record.note(name, *there))

    return judge


def falling(names: Sequence[str]) -> Judge:
    """That each system is right more often than the next."""

    def judge(record: Record) -> Finding | None:
        steps = [record.less(one, other) for one, other in pairwise(names)]
        known = [step for step in steps if step is not None]
        if len(known) < len(steps):
            return None
        figure = ", ".join(f"{name} {record.percent(name)}" for name in names)
        verdict = together([judged(step) for step in known]) + record.note(*names)
        return Finding(f"%: {figure}; steps {', '.join(map(points, known))}", verdict)

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
