"""Turn a published data set into a manifest, and its captions and questions into conversations."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from liteframe.align.conversation_rows import parse_turns
from liteframe.data.importers import ADAPTERS, Adapter, Problem, Record, Source
from liteframe.files import write_jsonl

_SHOWN = 10
_REFRESH = 200  # records


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `liteframe manifest`."""
    parser.add_argument("set", choices=sorted(ADAPTERS), metavar="SET", help=", ".join(sorted(ADAPTERS)))
    parser.add_argument("folder", metavar="FOLDER", help="the data set as published, archives unpacked")
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT.jsonl", help="manifest; what is missing goes to OUT.bad.jsonl"
    )
    parser.add_argument("--conversations", metavar="CHATS.jsonl", help="captions and questions, for train_lma.py")
    parser.add_argument("--videos", metavar="DIR", help="finevideo: folder to write the videos to")
    splits = "; ".join(f"{name}: {', '.join(a.splits)}" for name, a in sorted(ADAPTERS.items()) if a.splits)
    parser.add_argument("--split", help=f"part of the set, by default the first of these ({splits})")


def run(args: argparse.Namespace) -> int:
    """Writes the lists and prints license and counts; 0 if a video was found."""
    adapter = ADAPTERS[args.set]
    source = _source(adapter, args)
    print(f"{adapter.title}: {adapter.published}")
    print(f"license: {adapter.license.name} ({adapter.license.source})")
    for term in adapter.license.terms:
        print(f"  - {term}")
    sorting = Sorting()
    with _progress() as progress:
        task = progress.add_task("")
        chats = sorting.sort(adapter.records(source), lambda: progress.update(task, description=sorting.line()))
        # The first one is asked for before the file is touched: without any, an old file stays.
        for first in chats if args.conversations else ():
            write_jsonl(chain([first], chats), args.conversations)
        for _ in chats:
            pass
    output = Path(args.output)
    bad = output.with_name(f"{output.stem}.bad.jsonl")
    if sorting.videos:
        write_jsonl(sorting.videos.values(), output)
    write_jsonl(sorting.problems.values(), bad)
    _summarize(adapter, sorting, args, bad)
    return 0 if sorting.videos else 1


def _source(adapter: Adapter, args: argparse.Namespace) -> Source:
    if adapter.writes_videos and not args.videos:
        raise ValueError(f"{adapter.name} stores its videos inside parquet files; give --videos DIR to write them to")
    if args.videos and not adapter.writes_videos:
        raise ValueError(f"--videos is for sets that pack their videos; {adapter.name} does not")
    if args.conversations and not adapter.has_text:
        raise ValueError(f"{adapter.name} has no text; leave --conversations out")
    if args.split is not None and args.split not in adapter.splits:
        known = ", ".join(adapter.splits) or "none"
        raise ValueError(f"--split is {args.split!r}; splits of {adapter.name}: {known}")
    if args.conversations and Path(args.conversations).resolve() == Path(args.output).resolve():
        raise ValueError(f"--conversations and --output are both {args.output}; give two files")
    return Source(Path(args.folder).expanduser(), args.split, Path(args.videos).expanduser() if args.videos else None)


def _progress() -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


class Sorting:
    """Videos by path, conversations as they come, problems by video and kind."""

    def __init__(self) -> None:
        self.records = self.conversations = 0
        self.videos: dict[str, dict[str, Any]] = {}
        self.problems: dict[tuple[str, ...], dict[str, Any]] = {}

    def line(self) -> str:
        """How many records, videos and problems there were so far, for the progress line."""
        return f"{self.records} records, {len(self.videos)} videos, {len(self.problems)} problems"

    def sort(self, items: Iterator[Record | Problem], refresh: Any) -> Iterator[dict[str, Any]]:
        """Keeps videos and problems, and yields the rows of conversations that `train_lma.py` will accept."""
        for item in items:
            self.records += 1
            if self.records % _REFRESH == 1:
                refresh()
            if isinstance(item, Problem):
                self._report(item)
                continue
            self.videos.setdefault(item.video, {"video": item.video, **item.facts})
            for turns in item.conversations:
                row = {"video": item.video, "conversations": turns}
                try:
                    parse_turns(row, item.where)
                except ValueError as error:
                    self._report(Problem(item.video, "text", str(error), "the text is left out", item.where))
                else:
                    self.conversations += 1
                    yield row

    def _report(self, problem: Problem) -> None:
        """One row a video and kind, with the number of records that met it; texts one by one."""
        key = (problem.video, problem.kind) + ((problem.reason,) if problem.kind in ("text", "record") else ())
        row = self.problems.setdefault(
            key,
            {
                "video": problem.video, "kind": problem.kind, "reason": problem.reason, "remedy": problem.remedy,
                "where": problem.where, "records": 0,
            },
        )  # fmt: skip
        row["records"] += 1


def _summarize(adapter: Adapter, sorting: Sorting, args: argparse.Namespace, bad: Path) -> None:
    rows = list(sorting.problems.values())
    for row in rows[:_SHOWN]:
        print(f"{row['kind']}: {row['video']}: {row['reason']}; {row['remedy']}")
    if len(rows) > _SHOWN:
        print(f"and {len(rows) - _SHOWN} more in {bad}")
    kinds = Counter(row["kind"] for row in rows)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "no problem"
    print(f"{len(sorting.videos)} videos, {sorting.conversations} conversations; {counts}")
    if not sorting.videos:
        print(f"liteframe manifest: no video found in {args.folder}; see {bad}", file=sys.stderr)
        return
    print(f"wrote {args.output} and {bad} ({len(rows)} rows)")
    if args.conversations and sorting.conversations:
        print(f"wrote {args.conversations}")
    elif args.conversations:
        print(f"{args.conversations} was not written: no record has a text that can be used")
    print(f"next: liteframe scan {args.output} -o GOOD.jsonl, which finds files that cannot be decoded")
