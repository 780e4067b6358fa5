"""Which runs benchmarks/quality_for_cost.py makes, in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

GROUPS = ("rates", "optimizer", "longer", "to a cosine", "live", "batch", "views", "start", "first steps", "qkv")
# What a first half of the steps may see, and the options that make it so.
FIRST = {"short clips": "--model.student.clip_frames=4", "low resolution": "--data.size=32"}


@dataclass(frozen=True)
class Setup:
    """How much to run. Rates are AdamW's, and those of Muon's layers, where AdamW's part takes `beside_muon`."""

    videos: int = 400
    held_out: int = 48
    steps: int = 300
    every: int = 50
    batch: int = 8
    views: int = 8
    fewer_views: tuple[int, ...] = (1, 3)
    rates: tuple[tuple[str, tuple[float, ...]], ...] = (("muon", (6e-3, 12e-3, 24e-3)), ("adamw", (2e-3, 4e-3, 8e-3)))
    beside_muon: float = 4e-3
    seeds: tuple[int, ...] = (0, 1, 2)
    statistics_clips: int = 64


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        kind: optimizer.
        rate: of AdamW, or of Muon's layers.
        steps: optimizer steps.
        views: of each video in the cache; 0 is live, with a teacher and new clips in every epoch.
        batch: clips of a step.
        init: weight_selection or random.
        split_qkv: whether Muon takes q, k and v apart.
        first: what the first half of the steps sees, if not whole clips: a name of FIRST.
        seed: of the order of clips, and of live clips; the world and the caches have seed 0.
    """

    kind: str
    rate: float
    steps: int
    views: int
    batch: int
    seed: int
    init: str = "weight_selection"
    split_qkv: bool = True
    first: str | None = None


def plan(setup: Setup, finished: Callable[[Run], dict[str, Any] | None]) -> Iterator[tuple[str, Run]]:
    """Runs with the names of their groups, most valuable first; each must be finished before the next is asked for.

    Args:
        setup: how much to run.
        finished: the row of a run, or None.
    """
    best = {}
    for kind, rates in setup.rates:
        tries = [Run(kind, rate, setup.steps, setup.views, setup.batch, setup.seeds[0]) for rate in rates]
        for one in tries:
            yield "rates", one
        if not all(finished(one) for one in tries):
            return
        best[kind] = max(tries, key=lambda one: finished(one)["curve"][-1]["cosine"])  # type: ignore[index]
    muon, adamw = best["muon"], best["adamw"]
    first, *others = setup.seeds

    def seeds(group: str, *runs: Run, of: Sequence[int] = setup.seeds) -> Iterator[tuple[str, Run]]:
        for seed in of:
            for run in runs:
                yield group, replace(run, seed=seed)

    fewer = [replace(muon, views=views) for views in setup.fewer_views]
    halves = [replace(muon, first=name) for name in FIRST]
    small = replace(muon, batch=setup.batch // 2, steps=2 * setup.steps)
    large = replace(muon, batch=2 * setup.batch, steps=setup.steps // 2)
    # As long as no view comes again, a cached run is a live one: the few steps show that, and what a live one takes.
    short = max(1, setup.steps // 6)
    long_muon, long_adamw = replace(muon, steps=3 * setup.steps), replace(adamw, steps=8 * setup.steps)
    live = replace(adamw, steps=2 * setup.steps, views=0)
    yield from seeds("optimizer", muon, adamw)
    yield from seeds("longer", replace(adamw, steps=2 * setup.steps))
    yield from seeds("to a cosine", long_muon, long_adamw, of=[first])
    yield from seeds("to a cosine", long_muon, of=others)
    yield from seeds("batch", small, large, of=[first])
    yield from seeds("to a cosine", long_adamw, of=others)
    yield from seeds("live", live, of=[first])  # the dearest
    # One seed says what is worth more of them.
    for of in ([first], others):
        yield from seeds("live", replace(adamw, steps=short, views=0), replace(adamw, steps=short), of=of)
        yield from seeds("views", *fewer, of=of)
        yield from seeds("start", replace(muon, init="random"), of=of)
        yield from seeds("first steps", *halves, of=of)
        yield from seeds("qkv", replace(muon, split_qkv=False), of=of)
    yield from seeds("live", live, of=others)
    yield from seeds("batch", small, large, of=others)
