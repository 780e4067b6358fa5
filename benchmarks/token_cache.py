"""LMA from a token cache against live videos, padding with and without grouping, peak memory against length; toyworld.

python benchmarks/token_cache.py [--videos 16] [--turns 2] [--work runs/token_cache]

Writes benchmarks/token_cache.{json,md}. Live and cached runs take turns in one process; a length is a process of its
own, whose memory the operating system tells. What is in --work is not done again. The encoder is untrained: its tokens
are as large and as slow as a trained one's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file

from liteframe.align.command import LMACommand
from liteframe.bench.timing import machine
from liteframe.cli.main import main as liteframe
from liteframe.demo.demo import train
from liteframe.distill.command import CTDCommand
from liteframe.files import write_atomically, write_json
from liteframe.journal import Journal
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.toyworld.questions import write_toyworld
from liteframe.training.command import load_run

BUDGETS, VIEWS = "[16,32,64]", 2  # the runs go over the videos as often, so that they are those of live ones
LENGTHS = (2, 8, 16)  # videos of 64 frames in a row
BATCH = 8
OUTPUT = Path("benchmarks")


class Measured:
    """Parts of the record, each of which yields rows that say what they are.

    Args:
        work: folder of videos, cache and runs.
        videos: to render.
        turns: of live and cached.
    """

    def __init__(self, work: Path, videos: int, turns: int):
        self.work, self.turns = work, turns
        self.steps = VIEWS * videos // BATCH
        self.rows = work / "world" / "train.jsonl"
        if not self.rows.is_file():
            write_toyworld(work / "world", train=videos, test=1, seed=0)
        self.encoder, self.cache = work / "encoder", work / "cache"
        if not self.encoder.is_dir():
            torch.manual_seed(0)
            module = load_run(CTDCommand, ["--config", "toy", "--data.videos", str(work / "world" / "train")]).module
            LiteFrameEncoder(module.student_config).save_pretrained(self.encoder)
        words = ["cache", "tokens", *self.words(), "-o", str(self.cache), "--views", str(VIEWS)]
        if liteframe(words) != 0:
            raise RuntimeError("liteframe cache tokens failed")

    def words(self) -> list[str]:
        """What all runs have in common."""
        settings = {
            "model.encoder": self.encoder, "data.conversations": self.rows, "data.frames": BUDGETS,
            "data.batch_size": BATCH, "data.micro_batch_size": 4, "data.cache_features": "false",
            "trainer.max_steps": self.steps, "trainer.accelerator": "cpu",
        }  # fmt: skip
        return ["--config=toy", *(f"--{name}={value}" for name, value in settings.items())]

    def run(self, name: str, *more: str) -> dict[str, Any]:
        """The report of a run, which is done if it is not there."""
        folder = self.work / "runs" / name
        if not (folder / "report.json").is_file():
            train("align", *self.words(), f"--run={folder}", "--resume=auto", *more)
        return json.loads((folder / "report.json").read_text())

    def speed(self) -> Iterator[dict[str, Any]]:
        """Samples a second, live and from the cache in turns, and how far losses and adapters are apart."""
        for turn in range(self.turns):
            live = self.run(f"live_{turn}")
            cached = self.run(f"cached_{turn}", f"--data.tokens={self.cache}")
            weights = [
                load_file(self.work / "runs" / f"{name}_{turn}" / "adapter" / "adapter_model.safetensors")
                for name in ("live", "cached")
            ]
            losses = [report["figures"]["train/loss"] for report in (live, cached)]
            yield {
                "part": "speed",
                "turn": turn,
                "live": live["time"]["samples_per_second"],
                "cached": cached["time"]["samples_per_second"],
                "live_wait": live["time"]["data_wait_share"],
                "cached_wait": cached["time"]["data_wait_share"],
                "losses": losses,
                "loss_difference": abs(losses[0] - losses[1]),
                "adapter_difference": max((weights[0][n] - weights[1][n]).abs().max().item() for n in weights[0]),
            }

    def padding(self) -> Iterator[dict[str, Any]]:
        """Share of padding of the tokens that the language model reads in steps of 64 rows, grouped or not."""
        for micro in (2, 4, 8):
            for grouped in (False, True):
                words = [f"--data.tokens={self.cache}", f"--data.group_by_length={str(grouped).lower()}"]
                data = load_run(LMACommand, [*self.words(), *words, "--data.batch_size=64"]).data
                dataset = data.dataset()
                stream = data.stream(dataset, micro, 1)
                batches = [[len(dataset[key].input_ids) for key in stream.batch(n)] for n in range(128 // micro)]
                read = sum(map(sum, batches))
                padded = sum(max(batch) * len(batch) for batch in batches)
                yield {"part": "padding", "micro_batch": micro, "grouped": grouped, "tokens": read,
                       "padding": 1 - read / padded}  # fmt: skip

    def memory(self) -> Iterator[dict[str, Any]]:
        """Peak memory of a process that trains two steps on rows of so many videos, one row at a time."""
        first = [json.loads(line) for line in self.rows.read_text().splitlines()]
        names = [str(self.rows.parent / row["video"]) for row in first]
        for count in LENGTHS:
            turns = [{"from": "human", "value": "<video>" * count + " what?"}, {"from": "gpt", "value": "red"}]
            rows = self.work / f"rows_{count}.jsonl"
            row = {"videos": [names[number % len(names)] for number in range(count)], "conversations": turns}
            rows.write_text(json.dumps(row) + "\n")
            for checkpointing in (False, True):
                folder = self.work / "runs" / f"memory_{count}_{checkpointing}"
                more = {
                    "data.conversations": rows, "data.frames": f"[{64 * count}]", "data.batch_size": 1,
                    "data.micro_batch_size": 1, "trainer.max_steps": 2, "run": folder,
"model.gradient_checkpointing": str(checkpointing).lower(), "resume": "auto",
                }  # fmt: skip
                options = [f"--{key}={value}" for key, value in more.items()]
                child = subprocess.Popen(
                    [sys.executable, "-m", "liteframe", "align", "fit", *self.words(), *options],
                    stdout=subprocess.DEVNULL,
                )
                _, status, usage = os.wait4(child.pid, 0)
                child.returncode = os.waitstatus_to_exitcode(status)
                if child.returncode:
                    raise RuntimeError(f"a run of {count} videos ended with {child.returncode}")
                data = json.loads((folder / "report.json").read_text())["data"]
                yield {"part": "memory", "videos": count, "checkpointing": checkpointing,
                       "tokens": data["tokens"] // 2, "peak_mib": round(usage.ru_maxrss / 1024, 1)}  # fmt: skip


def as_markdown(record: dict[str, Any]) -> str:
    """The record as tables."""
    where, settings = record["machine"], record["settings"]
    rows = {part: [row for row in record["rows"] if row["part"] == part] for part in ("speed", "padding", "memory")}
    lines = [
        "# LMA from a token cache\n",
        f"{where['device']}, torch {where['torch']}, python {where['python']}, {where['date']}; toyworld, "
        f"{settings['videos']} videos, {VIEWS} epochs in steps of {BATCH} rows, 4 at a time, frames drawn from "
        f"{BUDGETS}. Not measured "
        "on a GPU, nor with other encoders: what the encoder costs beside the language model decides the ratio.\n",
        "| turn | live, samples/s | cached, samples/s | ratio | waiting for data, live and cached | difference of the "
        "last loss | of the adapters |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows["speed"]:
        lines.append(
            f"| {row['turn'] + 1} | {row['live']:.2f} | {row['cached']:.2f} | {row['cached'] / row['live']:.2f} | "
            f"{row['live_wait']:.0%}, {row['cached_wait']:.0%} | {row['loss_difference']:.1e} | "
            f"{row['adapter_difference']:.1e} |"
        )
    lines.append(f"\nMedian of the ratios: {median(row['cached'] / row['live'] for row in rows['speed']):.2f}.\n")
    if not rows["padding"]:
        return "\n".join([*lines, "Padding has not been recorded.\n"])
    lines += ["| rows at a time | as they come | grouped by length |", "|---|---|---|"]
    for micro in sorted({row["micro_batch"] for row in rows["padding"]}):
        shares = {row["grouped"]: row["padding"] for row in rows["padding"] if row["micro_batch"] == micro}
        lines.append(f"| {micro} | {shares[False]:.1%} | {shares[True]:.1%} |")
    lines += ["\nShare of padding of the tokens that the language model reads, in steps of 64 rows.\n"]
    if not rows["memory"]:
        return "\n".join([*lines, "Peak memory against length has not been recorded.\n"])
    lines += ["| tokens of a row | peak of the process, MiB | with gradient checkpointing |", "|---|---|---|"]
    for count in sorted({row["videos"] for row in rows["memory"]}):
        peaks = {row["checkpointing"]: row for row in rows["memory"] if row["videos"] == count}
        lines.append(f"| {peaks[False]['tokens']:,} | {peaks[False]['peak_mib']:.0f} | {peaks[True]['peak_mib']:.0f} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=16, help="to render, a multiple of 8 (16)")
    parser.add_argument("--turns", type=int, default=2, help="of live and cached (2)")
    parser.add_argument("--work", type=Path, default=Path("runs/token_cache"), help="videos, cache and runs")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    measured = Measured(args.work.resolve(), args.videos, args.turns)
    with Journal(args.work / "rows.jsonl") as journal:
        rows = [row for _, row in journal.rows()]
        for part in (measured.speed, measured.padding, measured.memory):
            if not any(row.get("done") == part.__name__ for row in rows):
                rows = [row for row in rows if row.get("part") != part.__name__]
                for row in part():
                    print(row, flush=True)
                    rows.append(row)
                    journal.append(row)
                rows.append({"done": part.__name__})
                journal.append(rows[-1])
                write(rows, {name: getattr(args, name) for name in ("videos", "turns")}, args.output)


def write(rows: Sequence[dict[str, Any]], settings: dict[str, Any], folder: Path) -> None:
    """The record of what has been measured so far."""
    found = [row for row in rows if "part" in row]
    record = {"machine": machine(torch.device("cpu")), "settings": settings, "rows": found}
    write_json(folder / "token_cache.json", record)
    write_atomically(folder / "token_cache.md", as_markdown(record).encode())


if __name__ == "__main__":
    main()
