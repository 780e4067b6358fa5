"""Is a film of 16:9 or 9:16 understood better in its own aspect ratio than squashed, at the same budget of pixels?

python benchmarks/aspect_ratio.py [--minutes N]     # one thread; a quarter of an hour of one core for all

On toyworld films of 72 x 128 and 128 x 72 pixels, whose shapes are as large as in the square films that the shipped
tiny InternVL was trained on. Frames are brought to 96 x 96 ("squash"), or to 64 x 128 and 128 x 64 ("aspect"), the
largest that multiples of 32 leave within the budget. The tiny InternVL's language model reads its tower's features
after WAP, and students of both modes that have seen films of both shapes, without any alignment; three seeds. Nothing
was tuned.
A cell that is done is a line of WORK/cells.jsonl, and the same command goes on behind it; after each,
aspect_ratio.{json,md} beside this file are written anew.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from claims import resume
from claims_plan import SEEDS, WHOLE, Cell, Setup, Variant
from qwen_toyworld import QUESTIONS, difference, percent, spread
from toy_students import UNSEEN, Film, Material, asked, clips_of, distil, films_of, student_config

from liteframe import load_teacher, load_video_llm
from liteframe.evaluate.asking import System
from liteframe.files import write_atomically, write_json
from liteframe.machine import processor_name
from liteframe.models.teacher.base import Teacher
from liteframe.models.vlm.attach import attach_encoder, processor_for
from liteframe.reduce.pooled_teacher import PooledEncoder, PooledTeacher
from liteframe.toyworld.model import CHECKPOINT
from liteframe.training.report import environment

SHAPES = {"16:9": (72, 128), "9:16": (128, 72)}  # height and width of the films
SIDE = 96  # whose square is the budget of pixels
STUDENTS = {
    "squash": {"image_size": SIDE, "resize": "squash"},
    "aspect": {"image_size": SIDE, "resize": "aspect", "merge_size": 2},
}
MODES = {"squash": "squashed", "aspect": "in their own aspect ratio"}
NAMES = {"pooled": "the teacher's features after WAP", "student": "student, CTD"}


def plan() -> list[Cell]:
    """First the teacher, then seed by seed both students."""
    students = [Cell("student", mode, seed) for seed in SEEDS for mode in STUDENTS]
    return [*(Cell("pooled", mode) for mode in STUDENTS), *students]


class Shop:
    """What all cells share, made when it is first needed.

    Args:
        setup: how much of it; scenes and test scenes of each shape.
    """

    def __init__(self, setup: Setup):
        self.setup = setup
        self.material = cache(self._material)

    @cached_property
    def vlm(self) -> tuple[Any, Any]:
        """The shipped tiny InternVL, whose processor makes frames of this benchmark's size."""
        model, processor = load_video_llm(CHECKPOINT)
        processor.video_processor.size = processor.image_processor.size = {"height": SIDE, "width": SIDE}
        return model, processor

    @cached_property
    def teacher(self) -> Teacher:
        """Its tower."""
        return load_teacher(str(CHECKPOINT))

    @cached_property
    def films(self) -> dict[str, list[Film]]:
        """Those that are asked about, by shape."""
        return {shape: films_of(0, self.setup.test_scenes, size) for shape, size in SHAPES.items()}

    def _material(self, mode: str) -> Material:
        teacher, config = self.teacher, student_config(self.teacher, STUDENTS[mode])
        parts = (
            [clips_of(world, scenes, teacher, each, config, size) for size in SHAPES.values()]
            for world, scenes, each in ((0, self.setup.scenes, 4), (UNSEEN, self.setup.test_scenes, 1))
        )
        return Material(teacher, *parts)

    def do(self, cell: Cell) -> dict[str, Any]:
        """What came of a cell; `right` by shape."""
        model, processor = self.vlm
        if cell.kind == "pooled":
            config = student_config(self.teacher, STUDENTS[cell.name])
            attached = attach_encoder(model, PooledEncoder(PooledTeacher(self.teacher)), config=config)
            found: dict[str, Any] = {}
        else:
            variant = Variant(STUDENTS[cell.name])
            student, cosine = distil(self.material(cell.name), self.setup, variant, cell.seed)
            attached, found = attach_encoder(model, student), {"cosine": cosine}
        system = System.of(attached.eval(), processor_for(processor, attached.config))
        right = {shape: "".join(asked(system, film, WHOLE) for film in films) for shape, films in self.films.items()}
        return {**found, "right": right}


def main(work: Path, output: Path, setup: Setup, minutes: float | None = None) -> None:
    """Do what is missing as long as there is time, and write what is there after each cell."""
    work.mkdir(parents=True, exist_ok=True)
    shop = Shop(setup)
    for cells in resume(work, {"setup": asdict(setup)}, plan(), shop.do, minutes):
        where = {key: value for key, value in environment(torch.device("cpu")).items() if key != "command"}
        record = {**where, "processor": processor_name(), "setup": asdict(setup), "cells": cells}
        write_json(output / "aspect_ratio.json", record)
        write_atomically(output / "aspect_ratio.md", as_markdown(record).encode())


def as_markdown(record: Mapping[str, Any]) -> str:
    """The record as a table of accuracies and a list of differences."""
    setup, cells = record["setup"], record["cells"]
    count = QUESTIONS * setup["test_scenes"]
    lines = [
        "# Squashed or in their own aspect ratio, on toyworld\n",
        f"{record['date']}, {record['processor']}, one thread, torch {record['versions']['torch']}, "
        f"{sum(row['cpu_seconds'] for row in cells) / 60:.0f} minutes of CPU time: "
        "`python benchmarks/aspect_ratio.py`. Films of 72 x 128 and 128 x 72 pixels; squashed to 96 x 96 (9 tokens a "
        f"slot of 4 frames), or 64 x 128 and 128 x 64 (8 tokens). {setup['steps']} steps of CTD on films of both "
        f"shapes, no alignment; {count} questions for each shape about {setup['test_scenes']} videos at {WHOLE} "
        "frames; accuracy in %, over seeds ± their standard deviation. *cosine*: of a student's held-out tokens and "
        "its own target, so no "
        "comparison of rows.\n",
        f"| system | frames are | seeds | {' | '.join(SHAPES)} | both | cosine |",
        "|---|---|---|" + "---|" * (len(SHAPES) + 2),
    ]
    for kind, name in NAMES.items():
        for mode in STUDENTS:
            if not (rows := rows_of(cells, kind, mode)):
                continue
            by_shape = [spread([percent(answers(row, [shape])) for row in rows], 1) for shape in SHAPES]
            both = spread([percent(answers(row, SHAPES)) for row in rows], 1)
            seeds = f"{len(rows)}" if kind == "student" else ""
            cosine = spread([row["cosine"] for row in rows if "cosine" in row], 3)
            lines.append(f"| {' | '.join([name, MODES[mode], seeds, *by_shape, both, cosine])} |")
    lines += ["", "Own aspect ratio less squashed, in points, ± the standard error (a video is a cluster):", ""]
    for kind, name in NAMES.items():
        ours, theirs = (rows_of(cells, kind, mode) for mode in ("aspect", "squash"))
        if ours and theirs:
            parts = {**{shape: [shape] for shape in SHAPES}, "both": [*SHAPES]}
            told = [
                f"{part} {difference([answers(row, of) for row in ours], [answers(row, of) for row in theirs])}"
                for part, of in parts.items()
            ]
            lines.append(f"- {name}: {', '.join(told)}")
    return "\n".join([*lines, ""])


def rows_of(cells: Sequence[Mapping[str, Any]], kind: str, mode: str) -> list[Mapping[str, Any]]:
    """Cells of a system, seed by seed."""
    return [row for row in cells if (row["cell"]["kind"], row["cell"]["name"]) == (kind, mode)]


def answers(row: Mapping[str, Any], shapes: Iterable[str]) -> str:
    """A 1 or a 0 for each question about films of these shapes."""
    return "".join(row["right"][shape] for shape in shapes)


def read_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop in time; the same command goes on")
    parser.add_argument("--work", type=Path, default=Path("runs/aspect_ratio"), help="finished cells")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent, help="folder of the two files")
    return parser.parse_args(argv)


if __name__ == "__main__":
    given = read_arguments()
    main(given.work.resolve(), given.output, Setup(scenes=40, steps=160, test_scenes=12), given.minutes)
