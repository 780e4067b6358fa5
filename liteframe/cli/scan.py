"""Check a folder of videos and write a manifest of the usable ones."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from liteframe.data.manifest import load_manifest, write_manifest
from liteframe.data.video.scan import ScanResult, scan
from liteframe.files import write_jsonl

_SHOWN = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `liteframe scan`."""
    parser.add_argument("source", help="folder of videos (all below it), or a JSONL manifest")
    parser.add_argument(
        "-o", "--output", required=True, metavar="GOOD.jsonl", help="manifest to write; the others go to GOOD.bad.jsonl"
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--workers", type=int, default=cores, help="files at a time (default: cores, %(default)s)")
    parser.add_argument("--deadline", type=float, default=60.0, help="seconds a file may take (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=4, help="random frames to compare a file (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Scans, writes both lists and prints a summary; 0 if the scan completed and found a usable video."""
    good_path = Path(args.output)
    bad_path = good_path.with_name(f"{good_path.stem}.bad.jsonl")
    entries = load_manifest(args.source)
    console = Console(file=sys.stdout)
    with _progress() as progress:
        task = progress.add_task("", total=len(entries), bad=0)

        def done(result: ScanResult) -> None:
            progress.update(task, advance=1)
            if result.error is not None:
                progress.update(task, bad=progress.tasks[task].fields["bad"] + 1)

        results = scan(entries, workers=args.workers, deadline=args.deadline, samples=args.samples, done=done)
    good = [result.entry for result in results if result.error is None]
    errors = [result.error for result in results if result.error is not None]
    write_manifest(good, good_path)
    write_jsonl(
        ({"video": e.path, "kind": e.kind, "reason": e.reason, "remedy": e.remedy} for e in errors),
        bad_path,
    )
    _summarize(console, results, good_path, bad_path)
    if not good:
        print(f"liteframe scan: none of {len(entries)} videos can be used; see {bad_path}", file=sys.stderr)
    return 0 if good else 1


def _progress() -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[bad]} bad"), TimeElapsedColumn())
    return Progress(
        TextColumn("scan"), *columns, TextColumn("ETA"), TimeRemainingColumn(), console=Console(stderr=True)
    )


def _summarize(console: Console, results: list[ScanResult], good_path: Path, bad_path: Path) -> None:
    errors = [result.error for result in results if result.error is not None]
    if errors:
        table = Table("video", "kind", "reason", "remedy", title=f"{len(errors)} that cannot be used")
        for error in errors[:_SHOWN]:
            # Text: a file name may hold what rich would take for markup
            table.add_row(*(Text(part) for part in (Path(error.path).name, error.kind, error.reason, error.remedy)))
        console.print(table)
        if len(errors) > _SHOWN:
            console.print(f"and {len(errors) - _SHOWN} more in {bad_path}", markup=False)
    good = [result.entry for result in results if result.error is None]
    hours = sum(entry.duration or 0.0 for entry in good) / 3600
    frames = sum(entry.frames or 0 for entry in good)
    readers = ", ".join(f"{count} by {name}" for name, count in sorted(Counter(e.reader for e in good).items()))
    console.print(f"{len(good)} usable: {frames} frames, {hours:.3g} hours; {readers or 'none'}", markup=False)
    console.print(f"wrote {good_path} and {bad_path} ({len(errors)} rows)", markup=False)
