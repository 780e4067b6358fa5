"""Does it work with a teacher of the Qwen kind: pairs of frames, no cls token, M-RoPE, times in words? On toyworld.

python benchmarks/qwen_toyworld.py [--minutes N]     # one thread; 25 minutes of one core for all

A tiny Qwen3-VL is made from nothing (`python -m liteframe.toyworld.pretrain --family qwen3_vl`) and asked with its own
dense features, with these after WAP by attention received, by their norms, and as plain means, and with students of
each of the three, three seeds; those by attention received also after LMA. Students are configs/ctd/toy.yaml but for
what benchmarks/claims.py says of its own, the questions half of those of claims.py, on which nothing was tuned. A cell
that is done is a line of WORK/cells.jsonl, and the same command goes on behind it; after each, qwen_toyworld.{json,md}
beside this file are written anew.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from claims import resume
from claims_cells import Workshop
from claims_plan import SEEDS, WHOLE, Cell, Variant
from claims_plan import Setup as Students
from claims_report import points

from liteframe.demo.demo import train
from liteframe.evaluate.asking import System
from liteframe.evaluate.intervals import paired_difference
from liteframe.files import write_atomically, write_json
from liteframe.machine import processor_name
from liteframe.models.vlm.load import load_video_llm
from liteframe.texts import read_json
from liteframe.toyworld.pretrain import main as pretrain
from liteframe.toyworld.questions import QUESTION_TYPES, write_toyworld
from liteframe.training.report import environment

SALIENCIES = {"received": "own", "norm": "norm", "mean": "mean"}  # and what claims_plan.Variant calls it
DENSE_FRAMES, FRAMES = (8, 16, 32), (WHOLE,)
QUESTIONS = 5  # about a video, one of each type


@dataclass(frozen=True)
class Setup(Students):
    """As of claims.py, and: videos, steps and pairs a step of the teacher's stages, videos and steps of LMA."""

    scenes: int = 100
    steps: int = 200
    test_scenes: int = 10
    videos: int = 500
    vision_steps: int = 600
    vision_batch: int = 32
    language_steps: int = 800
    restart_steps: int = 200
    lma_videos: int = 200
    lma_steps: int = 80


def plan() -> list[Cell]:
    """The teacher, what needs no training, then seed by seed the students."""
    cells = [Cell("teacher"), Cell("dense"), *(Cell("pooled", name) for name in SALIENCIES)]
    for seed in SEEDS:
        cells += [Cell("student", "received", seed), Cell("aligned", "received", seed)]
        cells += [Cell("student", name, seed) for name in SALIENCIES if name != "received"]
    return cells


class QwenShop(Workshop):
    """A workshop whose Video LLM is the tiny Qwen3-VL, in WORK/teacher."""

    setup: Setup

    def __init__(self, work: Path, setup: Setup):
        super().__init__(work, setup, work / "teacher")

    def do(self, cell: Cell) -> dict[str, Any]:
        """What came of a cell."""
        if cell.kind == "teacher":
            return self.make_teacher()
        if cell.kind == "dense":
            return {"right": self.asked(System.of(*self.vlm), DENSE_FRAMES)}
        if cell.kind == "pooled":
            return self.pooled(cell.name)
        folder = self.work / f"student_{cell.name}_{cell.seed}"
        if cell.kind == "aligned":
            return self.aligned(folder, cell.seed)
        return self.student(Variant(saliency=SALIENCIES[cell.name], frames=FRAMES), cell.seed, folder)

    def make_teacher(self) -> dict[str, Any]:
        """Train it, and what its own record says."""
        steps = ("videos", "vision_steps", "vision_batch", "language_steps", "restart_steps")
        options = [f"--{name.replace('_', '-')}={getattr(self.setup, name)}" for name in steps]
        if code := pretrain([str(self.source), "--family=qwen3_vl", *options]):
            raise ValueError(f"pre-training failed with exit code {code}")
        return {"pretraining": read_json(self.source / "pretraining.json")}

    def aligned(self, student: Path, seed: int) -> dict[str, Any]:
        """LMA as in configs/lma/toy.yaml, and the answers after it."""
        videos = self.work / "lma_videos"
        if not (videos / "test.jsonl").is_file():
            write_toyworld(videos, train=self.setup.lma_videos, test=1, seed=0)
        run = self.work / f"lma_{seed}"
        train(
            "align", "--config=toy", f"--model.vlm={self.source}", f"--model.encoder={student}",
            f"--data.conversations={videos / 'train.jsonl'}", f"--run={run}",
            f"--trainer.max_steps={self.setup.lma_steps}", f"--seed_everything={seed}", "--resume=auto",
        )  # fmt: skip
        model, processor = load_video_llm(self.source, encoder=student, adapter=run / "adapter")
        return {"right": self.asked(System.of(model, processor), FRAMES)}


def main(work: Path, output: Path, setup: Setup, minutes: float | None = None) -> None:
    """Do what is missing as long as there is time, and write what is there after each cell."""
    work.mkdir(parents=True, exist_ok=True)
    shop = QwenShop(work, setup)
    types = [question.groups["type"] for world in shop.films for film in world for question in film.questions]
    for cells in resume(work, {"setup": asdict(setup)}, plan(), shop.do, minutes):
        where = {key: value for key, value in environment(torch.device("cpu")).items() if key != "command"}
        record = {**where, "processor": processor_name(), "setup": asdict(setup), "types": types, "cells": cells}
        write_json(output / "qwen_toyworld.json", record)
        write_atomically(output / "qwen_toyworld.md", as_markdown(record).encode())


# Systems of the table, by the kind and the name of their cell.
NAMES = {
    "dense": "the VLM with its own dense features",
    "pooled": "these after WAP, no training: {}",
    "student": "student, CTD: {}",
    "aligned": "student, CTD + LMA: {}",
}
# Of which pairs the difference is told: kind, name and frames of each.
PAIRS = (
    (("pooled", "received", WHOLE), ("pooled", "mean", WHOLE)),
    (("pooled", "received", WHOLE), ("pooled", "norm", WHOLE)),
    (("student", "received", WHOLE), ("student", "mean", WHOLE)),
    (("student", "received", WHOLE), ("student", "norm", WHOLE)),
    (("aligned", "received", WHOLE), ("student", "received", WHOLE)),
    (("aligned", "received", WHOLE), ("dense", "", 8)),
    (("aligned", "received", WHOLE), ("dense", "", 32)),
)


def as_markdown(record: Mapping[str, Any]) -> str:
    """The record as a table of accuracies and a list of differences."""
    setup, (teacher, *rest), types = record["setup"], record["cells"], record["types"]
    steps = f"{setup['vision_steps']} and {setup['language_steps'] + setup['restart_steps']} steps"
    lines = [
        "# A teacher of the Qwen kind on toyworld\n",
        f"{record['date']}, {record['processor']}, one thread, torch {record['versions']['torch']}, transformers "
        f"{record['versions']['transformers']}: `python benchmarks/qwen_toyworld.py`. The tiny Qwen3-VL took "
        f"{teacher['cpu_seconds'] / 60:.0f} minutes of CPU time ({setup['videos']} videos, {steps}), all the rest "
        f"{sum(row['cpu_seconds'] for row in rest) / 60:.0f}. Students: {setup['steps']} steps of CTD, then "
        f"{setup['lma_steps']} of LMA on {setup['lma_videos']} videos. {len(types)} questions about "
        f"{len(types) // QUESTIONS} videos of worlds that nothing was tuned on; accuracy in %, over seeds ± their "
        "standard deviation. *cosine*: of a student's held-out tokens and its own target, so no comparison of rows.\n",
        f"| system | frames | seeds | accuracy | {' | '.join(QUESTION_TYPES)} | cosine |",
        "|---|---|---|---|" + "---|" * (len(QUESTION_TYPES) + 1),
    ]
    for row in rest:
        kind, name, seed = row["cell"].values()
        if seed != SEEDS[0]:
            continue
        for frames in row["right"]:
            answers, cosines = answers_of(rest, kind, name, frames), cosines_of(rest, kind, name)
            by_type = dict.fromkeys(QUESTION_TYPES, "")
            for one in answers:
                for right, what in zip(one, types, strict=True):
                    by_type[what] += right
            cells = [
                NAMES[kind].format(name), frames, f"{len(answers)}" if kind in ("student", "aligned") else "",
                spread([percent(one) for one in answers], 1),
                *(f"{percent(by_type[what]):.0f}" for what in QUESTION_TYPES), spread(cosines, 3),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "In points, question by question, ± the standard error (a video is a cluster):", ""]
    for ours, theirs in PAIRS:
        one, other = (answers_of(rest, kind, name, str(frames)) for kind, name, frames in (ours, theirs))
        if one and other:
            lines.append(f"- {' less '.join(words_of(*system) for system in (ours, theirs))}: {difference(one, other)}")
    return "\n".join([*lines, ""])


def answers_of(cells: Sequence[Mapping[str, Any]], kind: str, name: str, frames: str) -> list[str]:
    """A 1 or a 0 for each question, seed by seed."""
    rows = [row for row in cells if (row["cell"]["kind"], row["cell"]["name"]) == (kind, name)]
    return [row["right"][frames] for row in rows if frames in row["right"]]


def cosines_of(cells: Sequence[Mapping[str, Any]], kind: str, name: str) -> list[float]:
    """Those of students, seed by seed."""
    rows = [row for row in cells if (row["cell"]["kind"], row["cell"]["name"]) == (kind, name)]
    return [row["cosine"] for row in rows if "cosine" in row]


def words_of(kind: str, name: str, frames: int) -> str:
    """A system at a number of frames."""
    return f"{NAMES[kind].format(name)} ({frames} frames)"


def difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """One system less another over the seeds that both have; what has one row, has no seed, and is the same for all."""
    seeds = max(1, min((len(rows) for rows in (ours, theirs) if len(rows) > 1), default=1))
    one, other = ((list(rows) * seeds)[:seeds] if len(rows) == 1 else list(rows)[:seeds] for rows in (ours, theirs))
    videos = [number // QUESTIONS for number in range(len(one[0]))] * seeds
    right = ([answer == "1" for answer in "".join(system)] for system in (one, other))
    return points(paired_difference(*right, videos))


def percent(right: str) -> float:
    """Of ones among ones and zeros."""
    return 100 * right.count("1") / len(right)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, and ± sample standard deviation of several."""
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def read_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop in time; the same command goes on")
    parser.add_argument("--work", type=Path, default=Path("runs/qwen_toyworld"), help="teacher, students, cells")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent, help="folder of the two files")
    return parser.parse_args(argv)


if __name__ == "__main__":
    given = read_arguments()
    main(given.work.resolve(), given.output, Setup(), given.minutes)
