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

PAST, PRESENT, COUNT, NEW, OLD = "past", "present", "REC", "new", "old"
FEWEST = 6  # films of which a verdict is given
AGE = 24  # seconds: the newest slots of the budget reach back so far at least
Key = tuple[Any, ...]


class Claim(NamedTuple):
    """That one memory is right more often than another about the past, or not less often about the present."""

    words: str
    one: str
    other: str
    kind: str = PAST


CLAIMS = (
    Claim("All tokens remember the past better than a recent window", "all", "window"),
    Claim("Slots at even distances remember the past better than a recent window", "halving", "window"),
    Claim("Merged neighbors remember the past better than a recent window (MA-LMM)", "bank", "window"),
    Claim("Merged neighbors are better than a recent window, at equal entries", "bank, entries", "window"),
    Claim("Clips that the question chooses are better than the last ones (VideoStreaming)", "clips", "clips, last"),
    Claim("Clips that the question chooses of many are better than a recent window", "clips, entries", "window"),
    Claim("Saliency remembers the past better than the newest entries, at equal tokens", "saliency", "sink_window"),
    Claim("Saliency is better than random slots, at equal tokens", "saliency", "random"),
    Claim("Saliency remembers the past better than a recent window, at equal entries", "saliency, entries", "window"),
    Claim("Saliency is better than halving, at equal entries", "saliency, entries", "halving"),
    Claim("A prototype of each slot helps (StreamMem)", "saliency", "saliency, unmerged"),
    Claim("What changes and long values are better than the newest (InfiniPot-V)", "saliency, tar+van", "sink_window"),
    Claim("Attention of the template is a better score than these (StreamMem)", "saliency", "saliency, tar+van"),
    Claim("Two levels are better than all of the newest entries (Video-XL-2)", "bilevel", "sink_window"),
    Claim("Slots that are alike may be read as one (StreamMem's filter)", "saliency, filtered", "saliency", PRESENT),
    Claim("Halving costs nothing in the present", "halving", "window", PRESENT),
    Claim("Merged neighbors cost nothing in the present", "bank", "window", PRESENT),
    Claim("Saliency costs nothing in the present", "saliency", "window", PRESENT),
    Claim("Read once and kept, the newest slots are as good as read again", "sink_window", "window", PRESENT),
)


def answers(record: Mapping[str, Any]) -> dict[str, dict[Key, list[Any]]]:
    """By memory, rows (task, past, right, candidates, age) by film and number of the question."""
    found: dict[str, dict[Key, list[Any]]] = defaultdict(dict)
    for cell in record["cells"]:
        for number, row in enumerate(cell["rows"]):
            found[cell["memory"]][(*cell["film"], number)] = row
    return found


def chosen(rows: Mapping[Key, list[Any]], kind: str, scenes: Sequence[int]) -> dict[Key, list[Any]]:
    """Rows of a kind of films of such lengths: about the past without counts, the present, counts, new or old EPM."""

    def is_of(task: str, past: bool, age: int | None) -> bool:
        if kind in (NEW, OLD):
            return task == "EPM" and age is not None and (age > AGE) == (kind == OLD)
        return task == COUNT if kind == COUNT else task != COUNT and past == (kind == PAST)

    return {key: row for key, row in rows.items() if key[0] in scenes and is_of(row[0], row[1], row[4])}


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
        "four scenes; of `, entries`, a question reads as many entries as of `window` once the budget is full, labels "
        "included. Accuracy in % with its 95 % interval; differences in points, question by question, with films as "
        f"what is independent. `EPM, old`: the color of a shape at a second more than {AGE} s ago; entries: what an "
        "answer looks at, mean and most.",
    ]
    for scenes in lengths:
        heads = "memory | past | less window | less halving | EPM, new | EPM, old | REC | present | less window"
        lines += ["", f"## {scenes} scenes", "", f"| {heads} | entries |"]
        lines += ["|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"]
        for name, rows in by_memory.items():
            if not any(key[0] == scenes for key in rows):
                continue
            cells = [name, accuracy(rows, PAST, scenes), less(by_memory, name, "window", PAST, scenes)]
            cells += [less(by_memory, name, "halving", PAST, scenes)]
            cells += [accuracy(rows, kind, scenes) for kind in (NEW, OLD, COUNT, PRESENT)]
            cells += [less(by_memory, name, "window", PRESENT, scenes), entries(record, name, scenes)]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("| by chance | " + " | ".join(chances(by_memory, scenes)) + " |")
    lines += by_task(by_memory, [scenes for scenes in lengths if scenes > 2])
    lines += [
        "",
        "## Claims",
        "",
        f"Over films of 8 scenes and more. A verdict of 95 %, so of {len(CLAIMS)} one may come by chance.",
        "",
        "| claim | 8 scenes | longer | all of them | so it |",
        "|---|---:|---:|---:|---|",
    ]
    for claim in CLAIMS:
        parts = [[n for n in lengths if n == 8], [n for n in lengths if n > 8], [n for n in lengths if n >= 8]]
        pair = [by_memory.get(name, {}) for name in (claim.one, claim.other)]
        found = [against(*(chosen(rows, claim.kind, part) for rows in pair)) for part in parts]
        if found[-1] is not None:
            told = ["" if one is None else points(one) for one in found]
            lines.append(f"| {claim.words} | {' | '.join(told)} | {judged(found[-1], claim.kind)} |")
    versions = record["versions"]
    seconds = sum(cell["cpu_seconds"] for cell in record["cells"])
    lines += [
        "",
        f"Measured {record['date'][:10]}: {record['device']}, {seconds / 60:.0f} CPU minutes, "
        f"torch {versions['torch']}.",
    ]
    return "\n".join([*lines, ""])


def by_task(by_memory: Mapping[str, Mapping[Key, list[Any]]], lengths: Sequence[int]) -> list[str]:
    """Lines of a table of what the model has learned: accuracy by task, of a window and of all that there is."""
    columns = [(scenes, name) for scenes in lengths for name in ("all", "window", "halving") if name in by_memory]
    columns = [(scenes, name) for scenes, name in columns if any(key[0] == scenes for key in by_memory[name])]
    lines = ["", "## Tasks", "", f"| task | {' | '.join(f'{scenes}: {name}' for scenes, name in columns)} | chance |"]
    lines += ["|---|" + "---:|" * (len(columns) + 1)]
    for task in dict.fromkeys(row[0] for rows in by_memory.values() for row in rows.values()):
        cells, guessed = [task], []
        for scenes, name in columns:
            asked = [row for key, row in by_memory[name].items() if key[0] == scenes and row[0] == task]
            cells.append(f"{100 * sum(row[2] for row in asked) / len(asked):.0f}" if asked else "")
            guessed += [1 / row[3] for row in asked]
        if guessed:
            lines.append(f"| {' | '.join(cells)} | {100 * sum(guessed) / len(guessed):.0f} |")
    return lines


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


def entries(record: Mapping[str, Any], name: str, scenes: int) -> str:
    """Positions that a question's answer looks at, labels included: their mean, and the most."""
    counts = [held[2] for c in record["cells"] if c["memory"] == name and c["film"][0] == scenes for held in c["held"]]
    return f"{sum(counts) / len(counts):.0f}, {max(counts)}"


def chances(by_memory: Mapping[str, Mapping[Key, list[Any]]], scenes: int) -> list[str]:
    """Accuracy of a guess among the candidates, in the columns of the table."""
    rows = next(rows for rows in by_memory.values() if any(key[0] == scenes for key in rows))
    found = []
    for kind in (PAST, NEW, OLD, COUNT, PRESENT):
        some = chosen(rows, kind, [scenes]).values()
        found.append(f"{100 * sum(1 / row[3] for row in some) / len(some):.0f}" if some else "")
    return [found[0], "", "", *found[1:], "", ""]


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
