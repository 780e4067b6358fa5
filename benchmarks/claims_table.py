"""The claims that benchmarks/claims.py tries: whose, what, what would refute it, how it is judged; and the page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from claims_plan import BASE, RATIO, VARIANTS, WHOLE
from claims_report import (
    HOLDS,
    OPEN,
    REFUTED,
    Finding,
    Judge,
    Record,
    best,
    better,
    falling,
    judged,
    keeps,
    of_seeds,
    points,
    questions,
)

from liteframe import LiteFrameConfig, cost
from liteframe.texts import read_yaml
from liteframe.training.configs import packaged_configs

AT = f"@{RATIO:g}"
WAP, IN_FRAME = f"wap{AT}", f"wap in a frame{AT}"
MIXERS = ("attn", "attn_block", "dense", "spacetime")
MARKERS = ("<!-- claims -->\n", "<!-- /claims -->\n")


def post_hoc(record: Record) -> dict[str, int]:
    """Every other reducer at 1/16, at all frames."""
    rows = record.of("reduced")
    names = rows[0]["right"] if rows else ()
    return {name: WHOLE for name in names if name.endswith(AT) and not name.startswith("wap")}


def encoder_time(record: Record) -> Finding | None:
    """Time before the language model, as a part of the dense model's."""
    rows = record.of("times")
    if not rows:
        return None
    parts = ("tower", "signals", "reduction", "projector")
    spent = {name: sum(of[part] for part in parts) for name, of in rows[0]["times"].items()}
    shares = {name.removesuffix(AT): value / spent["none"] for name, value in spent.items() if name != "none"}
    student = shares.pop("student")
    low, high = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
    figure = f"{shares[low]:.2f} ({low}) to {shares[high]:.2f} ({high}) of the dense model's; the student {student:.2f}"
    return Finding(figure, HOLDS if shares[low] > 0.9 else REFUTED)


def mixers_cost(record: Record) -> Finding | None:
    """Whether no costlier mixer is better than the convolution; those that are tried."""
    tried = [name for name in MIXERS if record.answers(name)]
    if not tried:
        return None
    toy = read_yaml(packaged_configs()["ctd/toy"])["model"]["student"]
    price = cost(LiteFrameConfig(**toy))
    parts, verdicts = [], []
    for name in tried:
        less, other = record.less(BASE, name), cost(LiteFrameConfig(**{**toy, **VARIANTS[name].student}))
        assert less is not None
        more = (other.flops + other.attention_flops) / (price.flops + price.attention_flops)
        parts.append(f"{name} {points(less)} at {more:.2f}x the FLOPs, cosine {record.cosine(name):.3f}")
        verdicts.append(judged(less))
    left = [name for name in MIXERS if name not in tried]
    figure = f"convolution (cosine {record.cosine(BASE):.3f}) less {'; '.join(parts)}"
    return Finding(figure + (f"; not tried yet: {', '.join(left)}" if left else ""),
                   (REFUTED if REFUTED in verdicts else HOLDS) + record.note(BASE, *tried))  # fmt: skip


def beats_teacher(record: Record) -> Finding | None:
    """Of the long demo."""
    found = record.file("docs/results/demo_full/report.json")["student_over_teacher"]["by_seed"]
    return of_seeds([100 * value for value in found], "student after LMA at 64 frames less teacher at 8")


def alignment(record: Record) -> Finding | None:
    """Of the long demo."""
    values = []
    for rows in record.file("docs/results/demo_full/report.json")["by_seed"]:
        at = {row["system"]: row["accuracy"] for row in rows if row["frames"] == WHOLE}
        values.append(100 * (at["student, CTD + LMA"] - at["student, CTD"]))
    return of_seeds(values, "2,000 steps of CTD and 320 of LMA less CTD alone")


def rank(record: Record) -> Finding | None:
    """Of the ablation of LMA."""
    scores = record.file("benchmarks/lma_ablation.json")["scores"]
    four, more = (scores[f"CTD + LMA, rank {rank}, projector frozen"] for rank in (4, 16))
    values = [100 * (theirs["accuracy"] - ours["accuracy"]) for ours, theirs in zip(four, more, strict=True)]
    return of_seeds(values, "rank 16 less rank 4, after 400 and 100 steps", backwards=True)


def small_runs(record: Record, **arm: Any) -> list[Mapping[str, Any]]:
    """Runs of the benchmark of small students with clipped gradients."""
    rows = record.file("benchmarks/small_students.json")["runs"]
    return [row for row in rows if {**row["arm"], **arm, "clip_norm": 1.0} == row["arm"]]


def explode(record: Record) -> Finding | None:
    """How many small students are lost at usual rates."""
    rows = [row for dim in (32, 16) for rate in (2e-3, 2e-2)
            for row in small_runs(record, dim=dim, rate=rate, start="direct", steps=120)]  # fmt: skip
    lost = sum(row["lost"] for row in rows)
    figure = f"{lost} of {len(rows)} runs of 90k and 27k parameters, at two rates a factor of ten apart"
    return Finding(figure, HOLDS if lost else REFUTED)


def progressive(record: Record) -> Finding | None:
    """The better rate of the two, as many steps in all."""
    parts, gains = [], []
    for dim in (32, 16):
        ours, alone = (
            [row["cosine"]["end"] for row in small_runs(record, dim=dim, rate=2e-2, start=start, steps=steps)]
            for start, steps in (("progressive", 120), ("direct", 240))
        )
        gains.append(statistics.mean(ours) - statistics.mean(alone))
        parts.append(f"{dim} channels {statistics.mean(ours):.3f} against {statistics.mean(alone):.3f}")
    figure = f"cosine, 120 steps after 120 of a larger one against 240 alone: {', '.join(parts)}"
    return Finding(figure, HOLDS if min(gains) > 0 else REFUTED)


def muon(record: Record) -> Finding | None:
    """At the rates that were chosen for each."""
    runs = record.file("benchmarks/quality_for_cost.json")["runs"]
    wanted = {"views": 8, "batch": 8, "init": "weight_selection", "split_qkv": True, "first": None}

    def ends(**more: Any) -> list[float]:
        return [row["curve"][-1]["cosine"] for row in runs if {**row["run"], **wanted, **more} == row["run"]]

    ours, theirs = ends(kind="muon", steps=300, rate=0.024), ends(kind="adamw", steps=600, rate=0.004)
    if not ours or not theirs:
        return None
    verdict = HOLDS if min(ours) > max(theirs) else REFUTED if max(ours) < min(theirs) else OPEN
    figure = (
        f"cosine {statistics.mean(ours):.3f} against {statistics.mean(theirs):.3f}; {len(ours)} and {len(theirs)} seeds"
    )
    return Finding(figure, verdict)


class Claim(NamedTuple):
    """One claim."""

    whose: str
    text: str
    refuted_by: str
    judge: Judge


OTHER = "the other is right more often"
CLAIMS = (
    Claim("paper", "WAP is the best reduction without training at 16x", "another is right more often",
          best({WAP: WHOLE}, post_hoc)),
    Claim("paper", "reducing after the tower saves none of the encoder's time (64 frames)", "a method below 0.9",
          encoder_time),
    Claim("paper", "16x without training: pooling over time and space loses less than in space alone", OTHER,
          better(WAP, IN_FRAME)),
    Claim("paper", "WAP by the cls token is better than by attention received", OTHER, better("cls", "received")),
    Claim("paper", "WAP by the cls token is better than plain means, without training", OTHER, better("cls", "mean")),
    Claim("paper", "64 tokens, no training: 64 frames by WAP beat all tokens of 4", OTHER, better(WAP, "none@4")),
    Claim("paper", "a student sees more in more frames: 64 against 8", "64 frames are worse",
          better(BASE, BASE, (WHOLE, 8))),
    Claim("paper", "WAP's targets teach more than plain means", OTHER, better(BASE, "plain means")),
    Claim("paper", "the language model reads tokens of CTD, not those of RTD", OTHER, better(BASE, "rtd")),
    Claim("ours", "the freer RTD's decoder, the less is read", "a step that rises",
          falling((BASE, "plain means", "rtd_linear", "rtd"))),
    Claim("paper", "mixing over time helps", OTHER, better(BASE, "no mixer")),
    Claim("paper", "the depthwise convolution is as good as costlier mixers", "one of them is right more often",
          mixers_cost),
    Claim("paper", "16x in a student: over time and space is better than in space alone (both without mixer)", OTHER,
          better("no mixer", "spatial only")),
    Claim("paper", "16x is the best compression at equal tokens (16 of the language model)",
          "another is right more often", best({BASE: 16}, lambda _: {"4x": 4, "8x": 8, "32x": 32, "64x": WHOLE})),
    Claim("paper", "compression costs nothing against plain distillation", OTHER, better(BASE, "no compression")),
    Claim("paper", "alignment by LoRA gains", "it loses", alignment),
    Claim("paper", "rank 4 is enough", "rank 16 is better", rank),
    Claim("paper", "an aligned student beats its teacher at 8 times the frames and equal cost", "the teacher is better",
          beats_teacher),
    Claim("paper", "losses of small students explode", "none does", explode),
    Claim("paper", "small students are better distilled by way of a larger one", "as many steps alone are better",
          progressive),
    Claim("paper", "3-sigma clipping of targets helps", OTHER, better(BASE, "no clipping")),
    Claim("ours", "standardized channels help", OTHER, better(BASE, "no standardization")),
    Claim("ours", "weights cut from the teacher are a better start", OTHER, better(BASE, "random start")),
    Claim("ours", "clips of 4 frames are better than clips of 16", OTHER, better("clips of 4", BASE)),
    Claim("ours", "strides after blocks 3 and 5 of 6 are better than after 1 and 2", OTHER,
          better("strides after 3 and 5", BASE)),
    Claim("ours", "strides after blocks 2 and 4 of 6 are better than after 1 and 2", OTHER,
          better("strides after 2 and 4", BASE)),
    Claim("ours", "300 steps of Muon get further than 600 of AdamW", "AdamW does", muon),
    Claim("FastVID", "98.0 % of the accuracy at a tenth of the tokens; here 1/8", "less", keeps("fastvid@0.125", 0.98)),
    Claim("FlashVID", "99.1 % at a tenth; here 1/8", "less", keeps("flashvid@0.125", 0.991)),
    Claim("VidCom2", "99.6 % at a quarter", "less", keeps("vidcom2@0.25", 0.996)),
    Claim("EVS", "at most 1.95 points lost at a quarter", "more", keeps("evs@0.25", 0.9805)),
)  # fmt: skip


# Judged by what other commands have recorded.
RECORDED: dict[str, Judge] = {
    "alignment": alignment, "rank": rank, "beats_teacher": beats_teacher, "explode": explode,
    "progressive": progressive, "muon": muon,
}  # fmt: skip


def recorded(root: Path) -> dict[str, Finding | None]:
    """What these come to now, for claims.json: the other records may change later."""
    return {name: judge(Record([], root)) for name, judge in RECORDED.items()}


def tables(record: Mapping[str, Any]) -> str:
    """What stands between MARKERS in docs/claims.md."""
    measured, setup = Record(record["cells"]), record["setup"]
    of_others = {judge: record["recorded"][name] for name, judge in RECORDED.items()}
    tried: list[str] = []
    left: list[str] = []
    for whose, text, refuted_by, judge in CLAIMS:
        found = judge(measured) if judge not in of_others else of_others[judge]
        if found is None:
            left.append(f"- {text} ({whose})")
        else:
            figure, verdict = found
            tried.append(f"| {whose} | {text} | {refuted_by} | {figure} | {verdict} |")
    failed = {name: why for row in measured.of("reduced") for name, why in row["failed"].items()}
    minutes = sum(row["cpu_seconds"] for row in measured.cells) / 60
    lines = [
        f"{len(tried)} claims tried, {len(left)} not yet. {questions(setup)} questions about {questions(setup) // 5} "
        f"videos; students of {setup['steps']} steps; {minutes:.0f} minutes of CPU time, one thread of "
        f"{record['processor']}, {record['date'][:10]}, torch {record['versions']['torch']}.",
        "",
        "| whose | claim | refuted if | figure | verdict |",
        "|---|---|---|---|---|",
        *tried,
    ]
    if left:
        lines += ["", "Ready in the plan, not tried yet:", "", *left]
    if failed:
        lines += [
            "",
            "Could not reach 1/16:",
            "",
            *(f"- {name.removesuffix(AT)}: {why}" for name, why in failed.items()),
        ]
    return "\n".join([*lines, ""])


def filled(text: str, record: Mapping[str, Any]) -> str:
    """docs/claims.md with another record's tables."""
    before, rest = text.split(MARKERS[0])
    _, after = rest.split(MARKERS[1])
    return before + MARKERS[0] + tables(record) + MARKERS[1] + after
