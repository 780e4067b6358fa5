"""What trained methods for long videos gain on toy films, each against what it replaces.

python benchmarks/film_training.py MODEL --encoder DIR [--minutes N]     # one thread; about an hour for all, see --help

MODEL is a folder of `python -m liteframe.toyworld.film_pretrain`, DIR that of a student of toyworld (`make demo` leaves
one in runs/demo/ctd/encoder). Runs are those of `liteframe align fit` and `prefer fit`, small ones, that go on from one
alignment that all share; all answer the same questions about held-out films. A cell that is done is a line of
WORK/cells.jsonl, and the same command goes on behind it. After each, film_training.{json,md} beside this
file and a table of docs/claims.md are written anew.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from claims import resume
from film_training_cells import FilmShop
from film_training_plan import ARMS, BASE, SCENE_ARMS, Setup, plan
from film_training_report import filled, table
from film_training_rows import held_out

from liteframe.files import write_atomically, write_json
from liteframe.machine import processor_name
from liteframe.texts import read_json
from liteframe.training.report import environment

ROOT = Path(__file__).parents[1]
RECORD = "film_training.json"


def main(
    shop: FilmShop, output: Path, page: Path, names: Sequence[str] | None = None, minutes: float | None = None
) -> None:
    """Do what is missing as long as there is time, and write what is there after each cell.

    What the record holds of other arms, with the same setup, stays: several such commands may run on one work folder,
    each with arms of its own.
    """
    journal = shop.work / ("all" if names is None else "_".join(names).replace(" ", "_").replace(",", ""))
    journal.mkdir(parents=True, exist_ok=True)
    head = {"setup": asdict(shop.setup)}
    asked = [(film, question) for film, _, questions in held_out(shop.setup.moments) for question in questions]
    questions = [" ".join(map(str, (*film, q.task, int(q.past), len(q.candidates)))) for film, q in asked]
    for cells in resume(journal, head, plan(names), shop.do, minutes):
        where = {key: value for key, value in environment(torch.device("cpu")).items() if key != "command"}
        found = {**head, "processor": processor_name(), "questions": questions}
        record = {**where, **found, "cells": merged(cells, output / RECORD, found)}
        write_json(output / RECORD, record)
        write_atomically((output / RECORD).with_suffix(".md"), table(record).encode())
        write_atomically(page, filled(page.read_text(encoding="utf-8"), record).encode())


def merged(cells: Sequence[dict[str, Any]], earlier: Path, found: dict[str, Any]) -> list[dict[str, Any]]:
    """These cells, and those of an earlier record with the same setup and questions, in the order of the plan."""
    old = read_json(earlier) if earlier.is_file() else {}
    same = all(old.get(key) == found[key] for key in ("setup", "questions"))
    done = [row["cell"] for row in cells]
    rows = [*cells, *(row for row in (old["cells"] if same else ()) if row["cell"] not in done)]
    order = [cell.key() for cell in plan()]
    return sorted((row for row in rows if row["cell"] in order), key=lambda row: order.index(row["cell"]))


def read_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a model that has learned films")
    parser.add_argument("--encoder", type=Path, required=True, help="folder of a student of toyworld")
    parser.add_argument("--arms", nargs="+", choices=[BASE, *SCENE_ARMS, *ARMS], help="these alone; default: all")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop in time; the same command goes on")
    parser.add_argument("--work", type=Path, default=Path("runs/film_training"), help="films, runs, finished cells")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent, help="folder of the record")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "claims.md", help="whose table it writes")
    return parser.parse_args(argv)


if __name__ == "__main__":
    given = read_arguments()
    main(
        FilmShop(given.work.resolve(), Setup(), given.model.resolve(), given.encoder.resolve()),
        given.output, given.page, given.arms, given.minutes,
    )  # fmt: skip
