"""Claims of the paper and of the peers, tried on toyworld: students, reducers and times; writes docs/claims.md.

python benchmarks/claims.py [--minutes N]     # one thread; about two hours of one core for all, see --help

Every student is configs/ctd/toy.yaml but for what its row says: the same 300 steps of 8 clips of 16 frames, whose dense
features the teacher has computed once for all of them, one random order a seed. Students and reducers are read by the
shipped tiny InternVL without any alignment, and asked the same 300 questions about 60 videos of three worlds on which
nothing was tuned. A cell that is done is a line of WORK/cells.jsonl, and the same command goes on behind it. After
each, claims.json beside this file and the tables of docs/claims.md are written anew; what other commands have recorded
is read from their files.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from claims_cells import Workshop
from claims_plan import VARIANTS, Cell, Setup, plan
from claims_table import filled, recorded

from liteframe.files import write_atomically, write_json
from liteframe.journal import Journal
from liteframe.machine import processor_name
from liteframe.training.report import environment

ROOT = Path(__file__).parents[1]


class HasKey(Protocol):
    """A cell of any benchmark."""

    def key(self) -> dict[str, Any]:
        """As a row has it."""
        ...


C = TypeVar("C", bound=HasKey)


def done(shop: Workshop, cell: Cell) -> dict[str, Any]:
    """What came of a cell."""
    if cell.kind == "reduced":
        return shop.reduced(cell.seed)
    if cell.kind == "pooled":
        return shop.pooled(cell.name)
    return shop.times() if cell.kind == "times" else shop.student(VARIANTS[cell.name], cell.seed)


def main(work: Path, output: Path, page_file: Path, setup: Setup, minutes: float | None = None) -> None:
    """Do what is missing as long as there is time, and write what is there after each cell; errors as of `resume`."""
    work.mkdir(parents=True, exist_ok=True)
    shop = Workshop(work, setup)
    head = {"setup": asdict(setup)}
    for cells in resume(work, head, plan(), lambda cell: done(shop, cell), minutes):
        write(cells, setup, output, page_file)


def resume(
    work: Path, head: dict[str, Any], cells: Sequence[C], do: Callable[[C], dict[str, Any]], minutes: float | None
) -> Iterator[list[dict[str, Any]]]:
    """Do the cells that WORK/cells.jsonl does not hold, on one thread, as long as there is time.

    Args:
        work: an existing folder.
        head: what cells must have in common to stand in one file.
        cells: in order.
        do: what comes of a cell.
        minutes: of wall time; None: as long as it takes.

    Yields:
        All rows so far, after each cell, and once more at the end.

    Raises:
        ValueError: the folder holds cells of another setup, or is in use.
    """
    torch.set_num_threads(1)
    began = time.monotonic()
    with Journal(work / "cells.jsonl") as journal:
        rows = [row for _, row in journal.rows("remove this line, and it is done again")]
        if not rows:
            journal.append(head)
        elif rows[0] != head:
            raise ValueError(f"{work} holds cells of another setup: {rows[0]}; name another folder (--work)")
        done, longest = rows[1:], max((row["wall_seconds"] for row in rows[1:]), default=0.0)
        known = [row["cell"] for row in done]
        for cell in cells:
            if cell.key() in known:
                continue
            start, cpu = time.monotonic(), time.process_time()
            if minutes is not None and start - began + longest > 60 * minutes:
                print("out of time; the same command goes on", file=sys.stderr)
                break
            print(*cell.key().values(), file=sys.stderr, flush=True)
            row = {"cell": cell.key(), **do(cell)}
            row |= {"cpu_seconds": round(time.process_time() - cpu, 1)}
            row |= {"wall_seconds": round(time.monotonic() - start, 1)}
            journal.append(row)
            journal.sync()
            done.append(row)
            longest = max(longest, row["wall_seconds"])
            yield done
        yield done


def write(cells: Sequence[dict[str, Any]], setup: Setup, output: Path, page_file: Path) -> None:
    """The record and the page."""
    where = {key: value for key, value in environment(torch.device("cpu")).items() if key != "command"}
    found = {"setup": asdict(setup), "cells": list(cells), "recorded": recorded(ROOT)}
    record = {**where, "processor": processor_name(), **found}
    write_json(output / "claims.json", record)
    write_atomically(page_file, filled(page_file.read_text(encoding="utf-8"), record).encode())


def read_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop in time; the same command goes on")
    parser.add_argument("--work", type=Path, default=Path("runs/claims"), help="features and finished cells")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent, help="folder of claims.json")
    parser.add_argument(
        "--page", type=Path, default=ROOT / "docs" / "claims.md", help="the page whose tables it writes"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    given = read_arguments()
    main(given.work.resolve(), given.output, given.page, Setup(), given.minutes)
