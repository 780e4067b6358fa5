"""A comparison as pictures: accuracy against time with the frontier, at equal frames, tokens and time, differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from liteframe.compare.points import EQUALS, Point, frontier, of_system
from liteframe.compare.systems import BLIND, LITEFRAME, NONE, SystemName

MARKERS = "os^vDPX<>hp8"
AXES = {
    "frames": "frames of the video",
    "tokens": "tokens of the video that the language model reads",
    "time": "pixels to first token, ms",
}


def styles(points: Sequence[Point]) -> dict[SystemName, dict[str, Any]]:
    """Color, marker and width of each system: the dense model black, LiteFrame red, reducers in the order they come."""
    found: dict[SystemName, dict[str, Any]] = {}
    colors = [*plt.get_cmap("tab10").colors, *plt.get_cmap("Dark2").colors]  # type: ignore[attr-defined]
    colors = [color for color in colors if color not in (colors[3], colors[7])]  # red and gray are taken
    others: list[str] = []
    for system in dict.fromkeys(point.system for point in points):
        if system.base == BLIND:
            continue
        kind = f"{system.base} {system.mode} {system.reducer}"
        if (system.reducer or system.mode) and kind not in others:
            others.append(kind)
        number = others.index(kind) if kind in others else 0
        if str(system) == NONE:
            style = {"color": "black", "marker": "o", "lw": 2.2, "ms": 6, "zorder": 5}
        elif str(system) == LITEFRAME:
            style = {"color": "#d62728", "marker": "*", "lw": 2.2, "ms": 13, "zorder": 6}
        else:
            style = {"color": colors[number % len(colors)], "marker": MARKERS[number % len(MARKERS)]}
            style |= {"lw": 1.1, "ms": 5, "linestyle": "--" if system.student else "-"}
        found[system] = style
    return found


def draw(points: Sequence[Point], folder: Path) -> list[Path]:
    """Write the pictures that the points allow; returns their files."""
    known = [point for point in points if point.share is not None]
    drawn = []
    if any(point.total_ms is not None and point.frames for point in known):
        drawn.append(folder / "accuracy_against_time.png")
        against_time(known, drawn[-1])
    if any(point.frames for point in known):
        drawn.append(folder / "readings.png")
        readings(known, drawn[-1])
    if any(point.system.base != BLIND and str(point.system) != NONE for point in known):
        drawn.append(folder / "differences.png")
        differences(known, drawn[-1])
    return drawn


def against_time(points: Sequence[Point], path: Path) -> None:
    """Accuracy (95 % intervals) against time to the first token; numbers are frames, rings and line the frontier."""
    figure, axes = plt.subplots(figsize=(10, 6), layout="constrained")
    _curves(axes, points, "time", intervals=True)
    best = frontier([point for point in points if point.frames])
    times, shares = [point.times["total"] for point in best if point.times], [point.percent for point in best]
    line: dict[str, Any] = {"color": "#f2b134", "lw": 7, "alpha": 0.35, "zorder": 1, "solid_capstyle": "round"}
    axes.step(times, shares, where="post", label="frontier", **line)
    axes.plot(times, shares, "o", ms=17, mfc="none", mec="#d99000", mew=1.4, zorder=7)
    numbered = [p for p in points if p.frames and p.times and (p in best or p.system.reducer is None)]
    for point in numbered:
        place: dict[str, Any] = {"textcoords": "offset points", "xytext": (9, -13), "fontsize": 9, "zorder": 8}
        axes.annotate(str(point.frames), (point.total_ms, point.percent), **place)
    axes.set_title("Accuracy against time to the first token; numbers are frames, rings the frontier", loc="left")
    axes.set_ylabel("accuracy, % (95 % intervals)")
    figure.legend(loc="outside right upper", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def readings(points: Sequence[Point], path: Path) -> None:
    """The same accuracies against frames, tokens and time: which system is highest at an equal cost of each kind."""
    figure, panels = plt.subplots(1, 3, figsize=(15, 5.2), sharey=True, layout="constrained")
    for axes, equal in zip(panels, AXES, strict=True):
        _curves(axes, points, equal, intervals=False)
        axes.set_title(f"equal {equal}: read upwards", loc="left", fontsize=11)
    panels[0].set_ylabel("accuracy, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def differences(points: Sequence[Point], path: Path) -> None:
    """Paired differences at equal frames with 95 % intervals, against the dense model and against LiteFrame."""
    others = [name for name in (NONE, LITEFRAME) if any(str(point.system) == name for point in points)]
    counts = sorted({point.frames for point in points if point.frames})
    systems = [
        system for system in dict.fromkeys(p.system for p in points) if system.base != BLIND and str(system) != NONE
    ]  # fmt: skip
    height = 1.2 + 0.22 * len(systems) * max(1.6, len(counts) * 0.75)
    figure, panels = plt.subplots(
        1, len(others), figsize=(1.5 + 5 * len(others), height), sharey=True, layout="constrained", squeeze=False
    )
    shades = [plt.get_cmap("viridis")(0.15 + 0.65 * i / max(1, len(counts) - 1)) for i in range(len(counts))]
    for axes, name in zip(panels[0], others, strict=True):
        for row, system in enumerate(systems):
            for number, count in enumerate(counts):
                ours, theirs = of_system(points, str(system), count), of_system(points, name, count)
                if ours is None or theirs is None or ours is theirs:
                    continue
                less, y = ours.less(theirs), row + 0.7 * ((number + 0.5) / len(counts) - 0.5)
                axes.plot([100 * less.low, 100 * less.high], [y, y], color=shades[number], lw=1.6)
                axes.plot([100 * less.difference], [y], "o", color=shades[number], ms=4.5)
        axes.axvline(0, color="black", lw=1)
        axes.set_yticks(range(len(systems)), [system.label for system in systems])
        axes.set_xlabel(f"accuracy less that of {name}, points (95 % intervals)")
        axes.grid(axis="x", alpha=0.3)
        for row in range(0, len(systems), 2):
            axes.axhspan(row - 0.5, row + 0.5, color="black", alpha=0.04, lw=0)
    panels[0][0].set_ylim(len(systems) - 0.5, -0.5)
    lines = [plt.Line2D([], [], color=shade, marker="o", ms=4.5) for shade in shades]
    figure.legend(
        lines, [f"{count} frames" for count in counts], loc="outside upper right", ncols=len(counts), fontsize=9
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _curves(axes: Any, points: Sequence[Point], equal: str, *, intervals: bool) -> None:
    """A line a system, along its numbers of frames, and one across for what is known without video."""
    cost = EQUALS[equal]
    for system, style in styles(points).items():
        own = [p for p in points if p.system == system and p.share is not None and cost(p)]
        own.sort(key=lambda point: point.frames)
        if not own:
            continue
        x, y = [cost(point) for point in own], [point.percent for point in own]
        axes.plot(x, y, label=system.label, mec="white", mew=0.6, **style)
        if intervals:
            low, high = ([100 * getattr(p.share, end) for p in own] for end in ("low", "high"))
            axes.vlines(x, low, high, color=style["color"], lw=1, alpha=0.28, zorder=2)
    for point in points:
        if point.system.base == BLIND and point.share is not None:
            axes.axhline(point.percent, color="#777777", ls=":", lw=1.5, label="blind (no video)")
    axes.set_xscale("log", base=2 if equal == "frames" else 10)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if equal == "frames":
        axes.set_xticks(sorted({point.frames for point in points if point.frames}))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5), numticks=30))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(AXES[equal])
    axes.grid(alpha=0.25)
