"""What benchmarks/elastic.py found, as tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from claims_plan import WHOLE

from liteframe import LiteFrameConfig, cost

OWN, AIM = "16x", 0.002
TOKENS = 16  # at which modes are compared, beside 64 frames

Row = dict[str, Any]


def tokens_a_frame(config: LiteFrameConfig) -> float:
    """That the language model reads, in this compression."""
    return cost(config).tokens_per_frame


def report(record: Row, shape: LiteFrameConfig) -> str:
    """The page.

    Args:
        record: content of elastic.json, with all cells of at least one seed.
        shape: of the elastic student.
    """
    setup, cells = record["setup"], record["cells"]
    found = {(c["cell"]["arm"], c["cell"]["steps"], c["cell"]["seed"]): c for c in cells}
    most = setup["more"][-1]
    seeds = [seed for seed in setup["seeds"] if ("elastic", most, seed) in found]

    def rows(arm: str, steps: int) -> list[Row]:
        return [found[arm, steps, seed] for seed in seeds]

    def single(steps: int) -> list[Row]:
        return rows("single, on", steps) if steps else rows("single", setup["steps"])

    times = next(c for c in cells if c["cell"]["arm"] == "times")["times"]
    asked = len(found["elastic", most, seeds[0]]["right"][OWN]["frames"])
    lines = [
        "# Several compressions in one student, on toyworld",
        "",
        "Written by `python benchmarks/elastic.py`, whose head says what was done.",
        "",
        f"Cosine to the teacher's WAP tokens of 16x on held-out clips, mean over seeds {', '.join(map(str, seeds))}.",
        f"Aim: the elastic student no more than {AIM} below the student of 16x that went on for as many steps.",
        "",
        "| further steps | student of 16x | elastic, in 16x | difference by seed | aim |",
        "|---:|---:|---:|---|---|",
        *(_cosines(steps, single(steps), rows("elastic", steps)) for steps in (0, *setup["more"])),
        "",
        f"Modes after {most} further steps. Accuracy in per cent of {asked} questions, mean over seeds: at {WHOLE}",
        f"frames, the same of the upgrade before any step, and at {TOKENS} tokens. Time: from the pixels of {WHOLE}",
        f"frames to the first token, on one thread; the dense model takes {times['none']['total']:.0f} ms.",
        "",
        f"| mode | window | tokens a frame | ms | of it encoder | cosine | at {WHOLE} frames | untrained | frames of "
        f"{TOKENS} tokens | at {TOKENS} tokens |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for mode, window in shape.windows.items():
        share, after = tokens_a_frame(shape.of_mode(mode)), rows("elastic", most)
        cells_of_row = (
            mode, str(window), f"{share:g}", f"{times[mode]['total']:.0f}", f"{times[mode]['tower']:.0f}",
            f"{fmean(row['cosine'][mode] for row in after):.3f}", _percent(after, mode, "frames"),
            _percent(rows("elastic", 0), mode, "frames"), f"{TOKENS / share:g}", _percent(after, mode, "tokens"),
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells_of_row)} |")
    alone = single(most)
    minutes = sum(cell["cpu_seconds"] for cell in cells) / 60
    lines += [
        "",
        f"The student of 16x after as many steps: {_percent(alone, OWN, 'frames')} at {WHOLE} frames, "
        f"{_percent(alone, OWN, 'tokens')} at {TOKENS} tokens.",
        "",
        f"{record['date'][:10]}; {record['processor']}, one thread of a machine that did other things, too; "
        f"{minutes:.0f} CPU minutes in all.",
    ]
    return "\n".join(lines) + "\n"


def _cosines(steps: int, alone: Sequence[Row], elastic: Sequence[Row]) -> str:
    ours, theirs = ([row["cosine"][OWN] for row in rows] for rows in (elastic, alone))
    less = [a - b for a, b in zip(ours, theirs, strict=True)]
    met = sum(difference >= -AIM for difference in less)
    verdict = "met" if met == len(less) else f"met by {met} of {len(less)} seeds"
    differences = ", ".join(f"{difference:+.4f}" for difference in less)
    return f"| {steps} | {fmean(theirs):.4f} | {fmean(ours):.4f} | {differences} | {verdict} |"


def _percent(rows: Sequence[Row], mode: str, kind: str) -> str:
    right = [row["right"][mode][kind] for row in rows]
    return f"{100 * fmean(one.count('1') / len(one) for one in right):.1f}"
