"""Check a folder of videos and write a manifest of the usable ones."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from liteframe.data.manifest import VideoEntry, load_folder, load_manifest, write_manifest
from liteframe.data.paths import Listing
from liteframe.data.video.errors import VideoError
from liteframe.data.video.scan import ScanJournal, ScanResult, scan
from liteframe.files import check_output, write_jsonl
from liteframe.machine import usable_cores

_SHOWN = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `liteframe scan`."""
    parser.add_argument("source", help="folder of videos (all below it), or a JSONL manifest")
    parser.add_argument(
        "-o", "--output", required=True, metavar="GOOD.jsonl",
        help="manifest to write; the others go to GOOD.bad.jsonl. GOOD.part.jsonl keeps what is known until then: the "
        "same command goes on with a scan that was stopped",
    )  # fmt: skip
    parser.add_argument(
        "--shard", metavar="I/N", help="the I-th of N parts, from 1, into GOOD.I-of-N.jsonl; join them with "
        "`liteframe manifest merge`",
    )  # fmt: skip
    parser.add_argument("--html", type=Path, metavar="PAGE", help="also write a page of frames and of what is wrong")
    parser.add_argument(
        "--workers", type=int, default=usable_cores(), help="files at a time (default: cores, %(default)s)"
    )
    parser.add_argument("--deadline", type=float, default=60.0, help="seconds a file may take (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=4, help="random frames to compare a file (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Scans, writes both lists and prints a summary; 0 if the scan completed and, of the whole, a video is usable."""
    shard = _shard(args.shard)
    good_path = Path(args.output)
    if shard is not None:
        good_path = good_path.with_name(f"{good_path.stem}.{shard[0]}-of-{shard[1]}.jsonl")
    bad_path, part_path = (good_path.with_name(f"{good_path.stem}.{name}.jsonl") for name in ("bad", "part"))
    check_output(good_path)
    if args.html is not None:
        check_output(args.html)
    entries, listing = _look(Path(args.source).expanduser())
    everything = len(entries)
    if shard is not None:
        entries = [entry for entry in entries if _is_in(entry.video, *shard)]
    console = Console(file=sys.stdout)
    journal = ScanJournal(part_path, {"samples": args.samples, "deadline": args.deadline, "shard": args.shard})
    results = _scan_with(journal, entries, args)
    errors = [(result.error, result.entry) for result in results if result.error is not None]
    errors += [
        (VideoError(place, "unreadable", f"is a folder that cannot be looked into: {reason}"), VideoEntry(place))
        for place, reason in listing.unreadable.items()
        if shard is None or _is_in(place, *shard)
    ]
    write_manifest((result.entry for result in results if result.error is None), good_path)
    write_jsonl((_bad_row(error, entry) for error, entry in errors), bad_path)
    journal.close(finished=True)
    if args.html is not None:
        from liteframe.cli.contact_sheet import write_contact_sheet

        good = [result.entry for result in results if result.error is None]
        write_contact_sheet(args.source, good, [error for error, _ in errors], args.html, args.deadline)
    _summarize(console, results, [error for error, _ in errors], good_path, bad_path)
    _tell_of_others(console, listing)
    if shard is not None:
        print(f"part {args.shard}: {len(results)} of {everything} videos")
    elif not any(result.error is None for result in results):
        print(f"liteframe scan: none of {len(results)} videos can be used; see {bad_path}", file=sys.stderr)
        return 1
    return 0


def _look(source: Path) -> tuple[list[VideoEntry], Listing]:
    return load_folder(source) if source.is_dir() else (load_manifest(source), Listing())


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    numbers = re.fullmatch(r"(\d+)/(\d+)", text)
    if not numbers or not 1 <= int(numbers[1]) <= int(numbers[2]):
        raise ValueError(f"--shard {text}: I/N with I from 1 to N is needed, such as 3/8 (SLURM: --array=1-8)")
    return int(numbers[1]), int(numbers[2])


def _is_in(path: str, number: int, shards: int) -> bool:
    """Whether a file belongs to a part: by its own name, so that parts stay whole while files come and go."""
    return int.from_bytes(hashlib.sha256(os.fsencode(path)).digest()[:8], "big") % shards == number - 1


def _scan_with(journal: ScanJournal, entries: list[VideoEntry], args: argparse.Namespace) -> list[ScanResult]:
    """One result an entry: what the journal knows, and what is found now, which it is told."""
    known = [journal.recall(entry) for entry in entries]
    todo = [entry for entry, result in zip(entries, known, strict=True) if result is None]
    before = len(entries) - len(todo)
    if before:
        print(f"going on: {before} of {len(entries)} videos were looked at before ({journal.path})")
    with _progress() as progress:
        bad = sum(result is not None and result.error is not None for result in known)
        task = progress.add_task("", total=len(entries), completed=before, bad=bad)

        def keep(result: ScanResult) -> None:
            journal.keep(result)
            progress.update(task, advance=1)
            if result.error is not None:
                progress.update(task, bad=progress.tasks[task].fields["bad"] + 1)

        try:
            found = iter(scan(todo, workers=args.workers, deadline=args.deadline, samples=args.samples, done=keep))
        except BaseException:
            journal.close()
            kept = f"what is known so far is in {journal.path}; the same command goes on from there"
            print(f"liteframe scan: {kept}", file=sys.stderr)
            raise
    return [next(found) if result is None else result for result in known]


def _bad_row(error: VideoError, entry: VideoEntry) -> dict[str, object]:
    span = {"start": entry.start, "end": entry.end}
    row = {"video": error.path, "kind": error.kind, "reason": error.reason, "remedy": error.remedy}
    return {**row, **{name: value for name, value in span.items() if value is not None}}


def _tell_of_others(console: Console, listing: Listing) -> None:
    """What lies in the folder and is in neither list."""
    for link, target in listing.linked_again.items():
        reason = f"not followed: {link} leads to {target}, which is read under another name or holds this folder"
        console.print(reason, markup=False, soft_wrap=True)
    if listing.passed:
        kinds = ", ".join(f"{count} {ending}" for ending, count in listing.passed.most_common())
        others = f"{listing.passed.total()} other files are not looked at ({kinds}); a manifest may name any file"
        console.print(others, markup=False, soft_wrap=True)


def _progress() -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[bad]} bad"), TimeElapsedColumn())
    return Progress(
        TextColumn("scan"), *columns, TextColumn("ETA"), TimeRemainingColumn(), console=Console(stderr=True)
    )


def _summarize(
    console: Console, results: list[ScanResult], errors: list[VideoError], good_path: Path, bad_path: Path
) -> None:
    if errors:
        table = Table("video", "kind", "reason", "remedy", title=f"{len(errors)} that cannot be used")
        for error in errors[:_SHOWN]:
            # Text: a file name may hold what rich would take for markup
            table.add_row(*(Text(part) for part in (Path(error.path).name, error.kind, error.reason, error.remedy)))
        console.print(table)
        if len(errors) > _SHOWN:
            console.print(f"and {len(errors) - _SHOWN} more in {bad_path}", markup=False)
    good = [result.entry for result in results if result.error is None]
    _warn_of_stamps(console, [entry for entry in good if entry.broken_stamps])
    hours = sum(entry.duration or 0.0 for entry in good) / 3600
    frames = sum(entry.frames or 0 for entry in good)
    readers = ", ".join(f"{count} by {name}" for name, count in sorted(Counter(e.reader for e in good).items()))
    console.print(f"{len(good)} usable: {frames} frames, {hours:.3g} hours; {readers or 'none'}", markup=False)
    console.print(f"wrote {good_path} and {bad_path} ({len(errors)} rows)", markup=False)


def _warn_of_stamps(console: Console, entries: list[VideoEntry]) -> None:
    if entries:
        table = Table("video", "found, and what is done", title=f"{len(entries)} usable with broken time stamps")
        for entry in entries[:_SHOWN]:
            table.add_row(Text(Path(entry.video).name), Text(entry.broken_stamps or ""))
        console.print(table)
        if len(entries) > _SHOWN:
            console.print(f"and {len(entries) - _SHOWN} more, marked broken_stamps in the manifest", markup=False)
