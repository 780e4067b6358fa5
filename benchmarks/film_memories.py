"""Memories of a stream on toy films: what each answers about the past and the present, and what it keeps.

python benchmarks/film_memories.py MODEL [--encoder DIR] [--minutes N]     # one thread, see --help

Films of 2, 8, 32 and 128 scenes, of three worlds on which nothing was tuned, run through a session of each memory; all
questions of a moment are put to it when the moment has come. All have the same budget in tokens; those of which a
question reads fewer entries than of `window`, labels included, are there a second time with as many. A film with a
memory is a line of WORK/cells.jsonl; the same command goes on behind it.

Writes film_memories.{json,md,png}.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from film_memories_report import draw, table
from torch import Tensor
from typing_extensions import override

from liteframe.answer.frame_encoder import EncoderOnTop, frame_encoder
from liteframe.answer.key_values import KeyValues
from liteframe.answer.memory import memories
from liteframe.answer.memory.base import StreamMemory
from liteframe.answer.positions import Compact, Keep
from liteframe.answer.session import StreamSession
from liteframe.files import json_bytes, write_atomically
from liteframe.journal import Journal
from liteframe.reduce.base import Tokens
from liteframe.toyworld.film_pretrain import load_film_model
from liteframe.toyworld.films import FPS, Film, film_for, film_questions
from liteframe.toyworld.questions import TEST_WORLD
from liteframe.training.report import environment

ROOT = Path(__file__).parents[1]
BUDGET = 256  # tokens: four scenes
SEEDS = (0, 1, 2)
FILMS = {2: 1, 8: 4, 32: 2, 128: 1}  # of each world, by scenes
MOMENTS, ROUNDS = 4, 3
# Settings beside the budget. `, entries`: a question reads as many entries as of `window` with its labels.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "all": ("all", {}),
    "window": ("window", {"budget": BUDGET}),
    "halving": ("halving", {"budget": BUDGET}),
    "random": ("random", {"budget": BUDGET}),
    "bank": ("bank", {"budget": BUDGET}),
    "bank, entries": ("bank", {"budget": 340}),
    "clips": ("clips", {"budget": BUDGET, "pool": False, "chosen": 3}),
    "clips, last": ("clips", {"budget": BUDGET, "pool": False, "chosen": 3, "selector": "last"}),
    "clips, entries": ("clips", {"budget": 4 * BUDGET, "pool": False, "chosen": 15}),
    "sink_window": ("sink_window", {"budget": BUDGET}),
    "saliency": ("saliency", {"budget": BUDGET, "threshold": None}),
    "saliency, entries": ("saliency", {"budget": 972, "threshold": None}),
    "saliency, unmerged": ("saliency", {"budget": BUDGET, "threshold": None, "merge": "none"}),
    "saliency, tar+van": ("saliency", {"budget": BUDGET, "threshold": None, "score": "tar+van"}),
    "saliency, filtered": ("saliency", {"budget": BUDGET}),
    "bilevel": ("bilevel", {"budget": BUDGET, "pool": 2}),
}
SHORT = ("all", "saliency, unmerged", "saliency, tar+van", "saliency, filtered")  # on films of up to 8 scenes only
LONG = ("saliency, entries",)  # on longer ones, in which labels are dropped, only


class KeptEncoder(EncoderOnTop):
    """The model's own way, of which each clip of a film is encoded once for all memories."""

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(frame_encoder(model, processor))
        self.clip_frames, self.most_frames = self._whole.clip_frames, self._whole.most_frames
        self._kept: dict[tuple[int, int], Tokens] = {}  # by first frame and what is in the frames

    @override
    def tokens(self, pixels: Tensor, first_frame: int) -> Tokens:
        raise NotImplementedError("whole clips are encoded by `encode`")

    @override
    def encode(self, resized: Tensor, first_frame: int) -> Tokens:
        key = (first_frame, hash(resized.numpy().tobytes()))
        if key not in self._kept:
            self._kept[key] = self._whole.encode(resized, first_frame)
        return self._kept[key]

    def forget(self) -> None:
        """Another film comes."""
        self._kept = {}


def made(name: str) -> StreamMemory:
    """A new memory of the comparison."""
    kind, settings = SETTINGS[name]
    return memories[kind](**settings)


def cells(scenes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Films as (scenes, world, number), the short ones first, world after world."""
    for count in scenes:
        for number in range(FILMS[count]):
            for world in SEEDS:
                yield count, world, number


def names_of(scenes: int) -> list[str]:
    """Memories that are tried on films of so many scenes."""
    return [name for name in SETTINGS if name not in (LONG if scenes <= 8 else SHORT)]


def run(session: StreamSession, film: Film, frames: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """Show a film and ask about it; a row a question, and what is held at each moment.

    A row: task, whether it is about the past, whether the answer was right, candidates, seconds since what it is about.
    """
    rows, held = [], []
    questions = film_questions(film, rng, seconds=MOMENTS, rounds=ROUNDS)
    for second, group in groupby(questions, key=lambda question: question.second):
        asked = list(group)
        session.add(frames[session.frames : FPS * second])
        entries = entries_of(session, asked[0].text)
        found = session.score_all([(question.text, question.candidates) for question in asked])
        for question, scores in zip(asked, found, strict=True):
            right = question.candidates[int(scores.argmax())] == question.answer
            age = None if question.about is None else second - question.about
            rows.append([question.task, question.past, int(right), len(question.candidates), age])
        size = session.size()
        held.append([second, size.tokens, entries, size.bytes])
    return {"rows": rows, "held": held}


def entries_of(session: StreamSession, question: str) -> int:
    """Positions of the video that the language model reads for a question, labels included."""
    shown = session._shown(question)
    if shown is None or isinstance(shown, KeyValues):
        return 0 if shown is None else len(shown)
    return len(session.tokenizer(session._lines.text(shown), add_special_tokens=False).input_ids)


def main(argv: Sequence[str] | None = None) -> None:
    """Do what is missing as long as there is time, and write what is there after each film."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of `python -m liteframe.toyworld.film_pretrain`")
    parser.add_argument("--encoder", help="folder of a student; default: the teacher with WAP in its place")
    parser.add_argument("--scenes", type=int, nargs="+", default=list(FILMS), help="lengths of films")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop in time; the same command goes on")
    parser.add_argument("--work", type=Path, default=Path("runs/film_memories"), help="finished cells")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent, help="folder of the record")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    began = time.monotonic()
    args.work.mkdir(parents=True, exist_ok=True)
    model, processor = load_film_model(args.model, args.encoder)
    encoder = KeptEncoder(model, processor)
    with Journal(args.work / "cells.jsonl") as journal:
        rows = [row for _, row in journal.rows("remove this line, and it is done again")]
        known = {(*row["film"], row["memory"]) for row in rows}
        for scenes, world, number in cells(args.scenes):
            film = None
            for name in names_of(scenes):
                if (scenes, world, number, name) in known:
                    continue
                if time.monotonic() - began > 60 * args.minutes:
                    print("out of time; the same command goes on", file=sys.stderr)
                    write(rows, args.output)
                    return
                if film is None:
                    film = film_for(TEST_WORLD + world, number, scenes)
                    frames = film.frames()
                    encoder.forget()
                memory = made(name)
                positions = Compact() if memory.of_cache else Keep()
                session = StreamSession(
                    model, processor, memory, fps=FPS, labels="seconds", positions=positions, encoder=encoder
                )
                start = time.process_time()
                found = run(session, film, frames, np.random.default_rng([TEST_WORLD + world, number]))
                row = {"film": [scenes, world, number], "memory": name, **found}
                rows.append({**row, "cpu_seconds": round(time.process_time() - start, 1)})
                journal.append(rows[-1])
                print(scenes, world, number, name, rows[-1]["cpu_seconds"], file=sys.stderr, flush=True)
            if film is not None:
                write(rows, args.output)
    write(rows, args.output)


def write(rows: Sequence[dict[str, Any]], output: Path) -> None:
    """The record, the table and the picture."""
    where = {key: value for key, value in environment(torch.device("cpu")).items() if key != "command"}
    record = {**where, "budget": BUDGET, "cells": list(rows)}
    write_atomically(output / "film_memories.json", json_bytes(record))
    write_atomically(output / "film_memories.md", table(record).encode())
    draw(record, output / "film_memories.png")


if __name__ == "__main__":
    main()
