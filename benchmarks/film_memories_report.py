"""What benchmarks/film_memories.py has found: accuracies with intervals, claims with verdicts, what is kept."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from liteframe.evaluate.intervals import Difference, paired_difference, share

PAST, PRESENT, COUNT = "past", "present", "REC"
FEWEST = 6  # films of which a verdict is given
Key = tuple[Any, ...]


class Claim(NamedTuple):
    """That one memory is right more often than another about the past or the present, in films of so many scenes."""

    words: str
    one: str
    other: str
    kind: str = PAST
    scenes: int = 8


CLAIMS = (
    Claim("Halving remembers the past better than a recent window", "halving", "window"),
    Claim("Merged neighbors (MA-LMM) remember the past better than a recent window", "bank", "window"),
    Claim("Merging each place apart is better than merging whole slots", "bank", "bank, slots"),
    Claim(
        "Clips that the question chooses are better than the last ones (VideoStreaming)", "clips, 4", "clips, last 4"
    ),
    Claim("Saliency remembers the past better than the newest entries (StreamMem)", "saliency", "sink_window"),
    Claim("Saliency is better than random slots at equal tokens", "saliency", "random"),
    Claim("Saliency is better than halving at equal entries", "saliency, entries", "halving"),
    Claim("Saliency is better than a recent window at equal entries", "saliency, entries", "window"),
    Claim("Slots that are alike may be read as one (StreamMem's filter)", "saliency, filtered", "saliency", PRESENT),
    Claim("A prototype of each slot helps (StreamMem)", "saliency", "saliency, unmerged"),
    Claim("Attention of the template is a better score than TaR and VaN", "saliency", "saliency, tar+van"),
    Claim(
        "Two levels remember the past better than the newest entries (Video-XL-2)", "bilevel, entries", "sink_window"
    ),
    Claim("Halving costs nothing in the present", "halving", "window", PRESENT),
    Claim("Saliency costs nothing in the present", "saliency", "window", PRESENT),
    Claim("Read once and kept, the newest slots are as good as read again", "sink_window", "window", PRESENT),
)


def answers(record: Mapping[str, Any]) -> dict[str, dict[Key, list[Any]]]:
    """By memory, rows (task, past, right, candidates) by film and number of the question."""
    found: dict[str, dict[Key, list[Any]]] = defaultdict(dict)
    for cell in record["cells"]:
        for number, row in enumerate(cell["rows"]):
            found[cell["memory"]][(*cell["film"], number)] = row
    return found


def chosen(rows: Mapping[Key, list[Any]], kind: str, scenes: Sequence[int]) -> dict[Key, list[Any]]:
    """Rows about the past without counts, about the present, or counts, of films of such lengths."""
    return {
        key: row
        for key, row in rows.items()
        if key[0] in scenes and (row[0] == COUNT if kind == COUNT else row[0] != COUNT and row[1] == (kind == PAST))
    }


def against(one: Mapping[Key, list[Any]], other: Mapping[Key, list[Any]]) -> Difference | None:
    """The difference over the questions that both were asked, films what is independent; None without any."""
    both = [key for key in one if key in other]
    if not both:
        return None
    right = [[bool(rows[key][2]) for key in both] for rows in (one, other)]
    return paired_difference(*right, [key[:3] for key in both])


def judged(found: Difference, kind: str) -> str:
    """What a difference says about a claim; a claim about cost holds unless the cost is shown.

    An interval from few films is too narrow, so that nothing is said then.
    """
    if found.videos < FEWEST:
        return f"too few films ({found.videos})"
    if kind == PRESENT:
        return "refuted" if found.high < 0 else "not refuted"
    if found.low > 0:
        return "holds"
    return "refuted" if found.high < 0 else "no difference shown"


def points(found: Difference) -> str:
    """In points, with its interval."""
    if math.isnan(found.standard_error):  # of a single film
        return f"{100 * found.difference:+.1f}"
    return f"{100 * found.difference:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def table(record: Mapping[str, Any]) -> str:
    """The page."""
    by_memory = answers(record)
    lengths = sorted({cell["film"][0] for cell in record["cells"]})
    films = {scenes: len({tuple(c["film"]) for c in record["cells"] if c["film"][0] == scenes}) for scenes in lengths}
    shown = ", ".join(f"{count} of {scenes} scenes" for scenes, count in films.items())
    worlds = len({cell["film"][1] for cell in record["cells"]})
    lines = [
        "# Memories on toy films",
        "",
        f"Films of {worlds} worlds (the seeds): {shown}; a scene is 8 s, 64 tokens. Budget {record['budget']} tokens, "
        "four scenes; `, entries` have about as many KV entries as `window` shows with its labels. Accuracy in % with "
        "its 95 % interval; differences in points, question by question, with films as what is independent. A memory "
        "that ran on fewer films was asked other questions: compare differences, not accuracies.",
    ]
    for scenes in lengths:
        lines += ["", f"## {scenes} scenes", ""]
        lines += [
            "| memory | past | less window | less halving | present | present, less window | REC | entries | films |"
        ]
        lines += ["|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
        for name, rows in by_memory.items():
            if not any(key[0] == scenes for key in rows):
                continue
            cells = [name, accuracy(rows, PAST, scenes), less(by_memory, name, "window", PAST, scenes)]
            cells += [less(by_memory, name, "halving", PAST, scenes), accuracy(rows, PRESENT, scenes)]
            cells += [less(by_memory, name, "window", PRESENT, scenes), accuracy(rows, COUNT, scenes)]
            seen = len({key[:3] for key in rows if key[0] == scenes})
            lines.append("| " + " | ".join([*cells, f"{entries(record, name, scenes):.0f}", str(seen)]) + " |")
        lines.append("| by chance | " + " | ".join(chances(by_memory, scenes)) + " |")
    lines += [
        "",
        "## Claims",
        "",
        "Over films of 8 scenes and more.",
        "",
        "| claim | difference in points | so it |",
        "|---|---:|---|",
    ]
    for claim in CLAIMS:
        long = [scenes for scenes in lengths if scenes >= claim.scenes]
        found = against(*(chosen(by_memory.get(name, {}), claim.kind, long) for name in (claim.one, claim.other)))
        if found is not None:
            lines.append(f"| {claim.words} | {points(found)} | {judged(found, claim.kind)} |")
    versions = record["versions"]
    seconds = sum(cell["cpu_seconds"] for cell in record["cells"])
    lines += [
        "",
        f"Measured {record['date'][:10]}: {record['device']}, {seconds / 60:.0f} CPU minutes, "
        f"torch {versions['torch']}.",
    ]
    return "\n".join([*lines, ""])


def accuracy(rows: Mapping[Key, list[Any]], kind: str, scenes: int) -> str:
    """In %, with its interval."""
    some = chosen(rows, kind, [scenes])
    if not some:
        return ""
    found = share([bool(row[2]) for row in some.values()], [key[:3] for key in some])
    return f"{100 * found.accuracy:.0f} ({100 * found.low:.0f} to {100 * found.high:.0f})"


def less(by_memory: Mapping[str, Mapping[Key, list[Any]]], one: str, other: str, kind: str, scenes: int) -> str:
    """One memory's accuracy less another's."""
    if one == other or other not in by_memory:
        return ""
    found = against(*(chosen(by_memory[name], kind, [scenes]) for name in (one, other)))
    return "" if found is None else points(found)


def entries(record: Mapping[str, Any], name: str, scenes: int) -> float:
    """Mean number of positions that a question's answer looks at, labels included."""
    counts = [held[2] for c in record["cells"] if c["memory"] == name and c["film"][0] == scenes for held in c["held"]]
    return sum(counts) / max(1, len(counts))


def chances(by_memory: Mapping[str, Mapping[Key, list[Any]]], scenes: int) -> list[str]:
    """Accuracy of a guess among the candidates, in the columns of the table."""
    rows = next(rows for rows in by_memory.values() if any(key[0] == scenes for key in rows))
    found = {}
    for kind in (PAST, PRESENT, COUNT):
        some = chosen(rows, kind, [scenes]).values()
        found[kind] = f"{100 * sum(1 / row[3] for row in some) / len(some):.0f}" if some else ""
    return [found[PAST], "", "", found[PRESENT], "", found[COUNT], "", ""]


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Accuracy over the length of films, past and present apart, and entries over time in the longest film."""
    by_memory = answers(record)
    lengths = sorted({cell["film"][0] for cell in record["cells"]})
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), constrained_layout=True)
    for axis, kind in zip(axes, (PAST, PRESENT), strict=False):
        for number, (name, rows) in enumerate(by_memory.items()):
            found = [(scenes, chosen(rows, kind, [scenes])) for scenes in lengths]
            line = [(scenes, sum(r[2] for r in some.values()) / len(some)) for scenes, some in found if some]
            style = {"color": plt.get_cmap("tab20")(number % 20), "marker": "os^vD"[number % 5], "lw": 1.3, "ms": 4}
            axis.plot(*zip(*line, strict=True), label=name, **style)
        axis.set(xscale="log", xticks=lengths, xticklabels=lengths, xlabel="scenes", ylabel="right", title=kind)
        axis.minorticks_off()
    longest = max(record["cells"], key=lambda cell: cell["film"][0])["film"]
    for number, name in enumerate(by_memory):
        cell = next((c for c in record["cells"] if c["memory"] == name and c["film"] == longest), None)
        if cell is not None:
            held = [(second, count) for second, _, count, _ in cell["held"]]
            axes[2].plot(
                *zip(*held, strict=True), color=plt.get_cmap("tab20")(number % 20), marker="os^vD"[number % 5], ms=4
            )
    axes[2].set(xlabel="second of the film", ylabel="KV entries for a question", title=f"a film of {longest[0]} scenes")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=8, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
