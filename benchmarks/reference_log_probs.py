"""TPO on toyworld with the reference computed in every step, with a file that a run fills, and with one that is filled.

python benchmarks/reference_log_probs.py [--turns 2] [--steps 12] [--work runs/reference_log_probs]

Writes benchmarks/reference_log_probs.{json,md}. The three take turns in one process; what is in --work is not done
again. The encoder and the adapter are untrained, and pairs are made up of toyworld's answers: they cost what others do.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file

from liteframe.align.command import PreferCommand
from liteframe.bench.timing import machine
from liteframe.distill.command import CTDCommand
from liteframe.files import write_atomically, write_json, write_jsonl
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.texts import read_json
from liteframe.toyworld.questions import write_toyworld
from liteframe.training.command import load_run

VIDEOS = 16  # a step of configs/prefer/toy.yaml each, so that a step is an epoch
WAYS = {"computed": "computed in every step", "filling": "a file that the run fills", "filled": "a file that is filled"}
OUTPUT = Path("benchmarks")


def prepare(work: Path) -> None:
    """Videos, an encoder and pairs."""
    world = work / "world"
    write_toyworld(world, train=VIDEOS, test=1, seed=0)
    rows = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]
    answers = [row["conversations"][-1]["value"] for row in rows]
    others = [next(other for other in answers if other != answer) for answer in answers]
    pairs = [
        {"video": row["video"], "question": row["conversations"][0]["value"], "chosen": answer, "rejected": other}
        for row, answer, other in zip(rows, answers, others, strict=True)
    ]
    torch.manual_seed(0)
    module = load_run(CTDCommand, ["--config", "toy", "--data.videos", str(world / "train")]).module
    LiteFrameEncoder(module.student_config).save_pretrained(work / "encoder")
    write_jsonl(pairs, world / "pairs.jsonl")  # the last, and the sign that all is there


def run(work: Path, way: str, turn: int, steps: int) -> dict[str, Any]:
    """One run: seconds of a step, from its report, and its last loss."""
    folder = work / "runs" / f"{way}_{turn}"
    if not (folder / "report.json").is_file():
        settings = {
            "model.encoder": work / "encoder", "model.init_adapter": "null", "trainer.accelerator": "cpu",
            "data.pairs": work / "world" / "pairs.jsonl", "trainer.max_steps": steps, "run": folder, "resume": "auto",
        }  # fmt: skip
        if way != "computed":
            settings["model.reference_log_probs"] = work / f"kept_{turn}.jsonl"
        PreferCommand(["fit", "--config=toy", *(f"--{name}={value}" for name, value in settings.items())])
    report = read_json(folder / "report.json")
    seconds = report["data"]["batch_size"] / report["time"]["samples_per_second"]
    return {"way": way, "turn": turn, "seconds_per_step": seconds, "loss": report["figures"]["train/loss"]}


def difference(work: Path, turn: int) -> float:
    """How far the adapter of a run with a filled file is from that of one without, at most."""
    one, other = (
        load_file(work / "runs" / f"{way}_{turn}" / "adapter" / "adapter_model.safetensors")
        for way in ("computed", "filled")
    )
    return max((one[name] - other[name]).abs().max().item() for name in one)


def as_markdown(record: dict[str, Any]) -> str:
    """The record as a table."""
    where, settings, rows = record["machine"], record["settings"], record["rows"]
    seconds = {way: [row["seconds_per_step"] for row in rows if row["way"] == way] for way in WAYS}
    lines = [
        "# The reference's log-probabilities of TPO, kept\n",
        f"{where['device']}, torch {where['torch']}, python {where['python']}, {where['date']}; "
        f"configs/prefer/toy.yaml, {VIDEOS} pairs a step, which are all there are, {settings['steps']} steps a run, "
        f"{settings['turns']} turns, the machine busy with other work. Features of videos are kept in memory from the "
        "first step on. Not measured on a GPU.\n",
        "| reference | seconds a step | lowest and highest | of computed |",
        "|---|---|---|---|",
    ]
    base = median(seconds["computed"])
    lines += [
        f"| {name} | {median(seconds[way]):.3f} | {min(seconds[way]):.3f} to {max(seconds[way]):.3f} | "
        f"{median(seconds[way]) / base:.2f} |"
        for way, name in WAYS.items()
    ]  # fmt: skip
    losses = {way: [row["loss"] for row in rows if row["way"] == way] for way in WAYS}
    gap = max(abs(one - other) for one, other in zip(losses["computed"], losses["filled"], strict=True))
    lines.append(
        f"\nLargest difference between a run with a filled file and one without: last loss {gap:.1e}, "
        f"weights of the adapter {record['adapter_difference']:.1e}.\n"
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=2, help="of the three (2)")
    parser.add_argument("--steps", type=int, default=12, help="of a run (12)")
    parser.add_argument("--work", type=Path, default=Path("runs/reference_log_probs"), help="videos and runs")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    args = parser.parse_args(argv)
    work = args.work.resolve()
    if not (work / "world" / "pairs.jsonl").is_file():
        prepare(work)
    rows = [run(work, way, turn, args.steps) for turn in range(args.turns) for way in WAYS]
    record = {
        "machine": machine(torch.device("cpu")),
        "settings": {"turns": args.turns, "steps": args.steps},
        "rows": rows,
        "adapter_difference": max(difference(work, turn) for turn in range(args.turns)),
    }
    write_json(args.output / "reference_log_probs.json", record)
    write_atomically(args.output / "reference_log_probs.md", as_markdown(record).encode())


if __name__ == "__main__":
    main()
