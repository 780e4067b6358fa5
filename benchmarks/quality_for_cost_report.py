"""What benchmarks/quality_for_cost.py found, as tables, a picture, and the arithmetic of docs/cost.md."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from liteframe.files import write_atomically, write_json

ROOT = Path(__file__).resolve().parents[1]
MARKERS = ("<!-- quality -->\n", "<!-- /quality -->")
COSINES = (0.85, 0.90, 0.95, 0.968)
Arms = Sequence[Sequence[dict[str, Any]]]
VIEWS = "8"  # of the paper's recipe from a cache


def steps_to(curve: Sequence[dict[str, float]], cosine: float, of: str = "step") -> float | None:
    """Steps, or CPU seconds (`of` "cpu"), at which a curve first reaches a cosine; linear between two validations."""
    for number, point in enumerate(curve):
        if point["cosine"] >= cosine:
            if not number:
                return point[of]
            before = curve[number - 1]
            part = (cosine - before["cosine"]) / (point["cosine"] - before["cosine"])
            return before[of] + part * (point[of] - before[of])
    return None


def name_of(run: dict[str, Any]) -> str:
    """As in the tables; without the seed."""
    words = [f"{'Muon' if run['kind'] == 'muon' else 'AdamW'} {run['rate']:g}"]
    words.append(f"{run['views']} view{'s' if run['views'] > 1 else ''}" if run["views"] else "live")
    words += [f"batch {run['batch']}", f"{run['steps']} steps"]
    words += ["random start"] if run["init"] == "random" else []
    words += [] if run["split_qkv"] else ["q, k, v as one matrix"]
    words += [f"first half: {run['first']}"] if run["first"] else []
    return ", ".join(words)


def by_arm(record: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Runs that differ in nothing but the seed, in the order in which they came first."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for row in record["runs"]:
        arms.setdefault(name_of(row["run"]), []).append(row)
    return arms


def spread(values: Sequence[float | None], digits: int) -> str:
    """Mean ± standard deviation; where a run has no value, how many have one."""
    found = [value for value in values if value is not None]
    if len(found) < len(values):
        return f"{len(found)} of {len(values)} runs" if found else "-"
    deviation = f" ± {statistics.stdev(found):.{digits}f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):.{digits}f}{deviation}"


def letter_of(record: dict[str, Any]) -> dict[str, str]:
    """A letter for each processor."""
    names = dict.fromkeys(row["processor"] for row in record["runs"])
    return {name: chr(ord("A") + number) for number, name in enumerate(names)}


def as_markdown(record: dict[str, Any]) -> str:
    """The record as a table."""
    setup = record["setup"]
    letters = letter_of(record)
    built = ", ".join(
        f"{row['cpu_seconds']:.0f} s on {letters[row['processor']]}"
        for row in record["caches"]
        if row["views"] == setup["views"] and not row["first"]
    )
    tries = len(setup["rates"][0][1])
    machines = ", ".join(f"{letter}: {name}" for name, letter in letters.items())
    lines = [
        "# Quality for cost: CTD on toyworld\n",
        f"{record['threads']} thread, shared with other work, torch {record['versions']['torch']}, python "
        f"{record['python']}, {record['date'][:10]}. configs/ctd/toy.yaml on {setup['videos']} videos, "
        f"{setup['held_out']} held out. Made by `python benchmarks/quality_for_cost.py` on: {machines}.\n",
        "Mean ± standard deviation over the seeds of a row. *Cosine*: of held-out tokens with the teacher's, after the "
        f"last step. *Steps to* it: on the run's own curve, measured every {setup['every']} steps (12 times in one of "
        f"more than {12 * setup['every']}). A curve belongs to its length, since the rate comes down towards its end. "
        "*CPU*: of the training process in its steps, without validation, without the process that decodes videos "
        "(which favors live)"
        + (f", without building the cache ({built} for {setup['views']} views)" if built else "")
        + f"; times on different processors are not compared. Both optimizers had {tries} learning "
        f"rate{'s' if tries > 1 else ''}, tried for {setup['steps']} steps on seed {setup['seeds'][0]} and chosen by "
        f"the cosine; Muon's is that of its layers, beside AdamW's {setup['beside_muon']:g} for the rest. All other "
        "rows take what was chosen, and were not tuned.\n",
        "| run | seeds | on | cosine | " + " | ".join(f"steps to {c:g}" for c in COSINES) + " | CPU ms a step | "
        + " | ".join(f"CPU s to {c:g}" for c in COSINES) + " |",
        "|---|---|---|---|" + "---|" * (2 * len(COSINES) + 1),
    ]  # fmt: skip
    for name, rows in by_arm(record).items():
        curves = [row["curve"] for row in rows]
        where = sorted({letters[row["processor"]] for row in rows})
        times = [
            spread([1e3 * curve[-1]["cpu"] / curve[-1]["step"] for curve in curves], 0),
            *(spread([steps_to(curve, c, "cpu") for curve in curves], 0) for c in COSINES),
        ]
        cells = [
            name, " ".join(str(row["run"]["seed"]) for row in rows), " ".join(where),
            spread([curve[-1]["cosine"] for curve in curves], 4),
            *(spread([steps_to(curve, c) for curve in curves], 0) for c in COSINES),
            *(times if len(where) == 1 else [""] * len(times)),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("\n![held-out cosine against steps and CPU time](quality_for_cost.png)")
    return "\n".join(lines) + "\n"


def plot(record: dict[str, Any], path: Path) -> None:
    """Held-out cosine against steps and CPU time: mean over the seeds with their range, of rows that have all seeds."""
    with matplotlib.rc_context({"axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(11, 4.5), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for name, rows in by_arm(record).items():
            if len(rows) < len(record["setup"]["seeds"]):
                continue
            points = list(zip(*(row["curve"] for row in rows), strict=True))
            cosines = [[p["cosine"] for p in point] for point in points]
            for axis, of in zip(axes, ("step", "cpu"), strict=True):
                x = [statistics.fmean(p[of] for p in point) for point in points]
                (line,) = axis.plot(x, [statistics.fmean(c) for c in cosines], label=name)
                color = line.get_color()
                axis.fill_between(x, [min(c) for c in cosines], [max(c) for c in cosines], alpha=0.2, color=color)
        for axis, label in zip(axes, ("steps", "CPU seconds of training"), strict=True):
            axis.set_xlabel(label)
        axes[0].set_ylabel("held-out token cosine")
        if axes[0].lines:
            axes[0].legend(fontsize=7)
        figure.savefig(path, format="png", dpi=110)


def plain_arms(record: dict[str, Any], kind: str) -> list[list[dict[str, Any]]]:
    """Cached runs of an optimizer, no shorter than the tries, which differ in their length alone."""
    setup = record["setup"]
    plain = {"kind": kind, "views": setup["views"], "batch": setup["batch"], "init": "weight_selection",
             "split_qkv": True, "first": None}  # fmt: skip
    chosen = chosen_rate(record, kind)
    arms = [rows for rows in by_arm(record).values() if plain.items() <= rows[0]["run"].items()]
    return [rows for rows in arms if rows[0]["run"]["steps"] >= setup["steps"] and rows[0]["run"]["rate"] == chosen]


def chosen_rate(record: dict[str, Any], kind: str) -> float:
    """The rate with which most of an optimizer's runs were made."""
    return statistics.mode(row["run"]["rate"] for row in record["runs"] if row["run"]["kind"] == kind)


def fewest(arms: Arms, cosine: float, of: str) -> tuple[float, int] | None:
    """Mean steps or CPU seconds to a cosine, at the length that needs fewest, and of how many seeds.

    None where no length has all its seeds there.
    """
    reached = [[steps_to(row["curve"], cosine, of) for row in rows] for rows in arms]
    means = [(statistics.fmean(filter(None, values)), len(values)) for values in reached if None not in values]
    return min(means, default=None)


def cpu_ratio(muon: Arms, adamw: Arms, cosine: float) -> float | None:
    """CPU time of Muon to a cosine as a part of AdamW's, on the first processor that has both."""
    for processor in dict.fromkeys(row["processor"] for rows in adamw for row in rows):
        ours, theirs = (
            fewest([rows for rows in arms if {row["processor"] for row in rows} == {processor}], cosine, "cpu")
            for arms in (muon, adamw)
        )
        if ours and theirs:
            return ours[0] / theirs[0]
    return None


def page(record: dict[str, Any], recipe: dict[str, Any]) -> str:
    """Steps that Muon and AdamW need to a cosine, their CPU time, and what follows for the paper's GPU-hours.

    Args:
        record: of the runs.
        recipe: of benchmarks/recipe_cost.json.
    """
    live, cached, build = (recipe[name] for name in ("live_gpu_hours", "cached_gpu_hours", "build_gpu_hours"))
    muon, adamw = plain_arms(record, "muon"), plain_arms(record, "adamw")
    lines = [
        "| held-out cosine | AdamW needs | Muon needs | of the steps | of the CPU time | "
        f"so CTD from {VIEWS} views would take | of the paper's {live:,} GPU-hours |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for cosine in COSINES:
        theirs, ours = fewest(adamw, cosine, "step"), fewest(muon, cosine, "step")
        cells = [f"{cosine:g}", as_steps(theirs), as_steps(ours)]
        if theirs is None or ours is None:
            cells += [""] * 4
        else:
            part, time = ours[0] / theirs[0], cpu_ratio(muon, adamw, cosine)
            hours = build[VIEWS] + (cached[VIEWS] - build[VIEWS]) * part
            cells += [f"{part:.2f}", "" if time is None else f"{time:.2f}"]
            cells += [f"{hours:,.0f} GPU-hours", f"{hours / live:.1%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def as_steps(found: tuple[float, int] | None) -> str:
    """Mean steps and the number of seeds."""
    if found is None:
        return "not reached"
    return f"{found[0]:.0f} steps ({found[1]} seed{'s' if found[1] > 1 else ''})"


def write(record: dict[str, Any], output: Path) -> None:
    """The three files."""
    write_json(output / "quality_for_cost.json", record)
    write_atomically(output / "quality_for_cost.md", as_markdown(record).encode())
    plot(record, output / "quality_for_cost.png")


def write_page() -> None:
    """The part of docs/cost.md that follows from the records beside this file."""
    record, cost = (
        json.loads((ROOT / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("quality_for_cost", "recipe_cost")
    )
    path = ROOT / "docs" / "cost.md"
    before, rest = path.read_text(encoding="utf-8").split(MARKERS[0])
    _, after = rest.split(MARKERS[1])
    write_atomically(path, (before + MARKERS[0] + page(record, cost["recipe"]) + MARKERS[1] + after).encode())
