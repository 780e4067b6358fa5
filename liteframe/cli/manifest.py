"""Turn a published data set into a manifest and conversations, or join lists that were written apart."""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from liteframe.data.importers import ADAPTERS, Adapter, Problem, Record, Source
from liteframe.data.manifest import entry_of_row, load_manifest
from liteframe.data.paths import Containment, in_order, local_path
from liteframe.files import check_output, json_bytes, write_jsonl, write_lines
from liteframe.texts import read_jsonl

_SHOWN = 10
_REFRESH = 200  # records


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `liteframe manifest`."""
    kinds = parser.add_subparsers(dest="set", metavar="SET", required=True)
    for name, adapter in sorted(ADAPTERS.items()):
        one = kinds.add_parser(name, help=adapter.title)
        one.add_argument("folder", metavar="FOLDER", help="the data set as published, archives unpacked")
        one.add_argument(
            "-o", "--output", required=True, metavar="OUT.jsonl", help="manifest; what is missing goes to OUT.bad.jsonl"
        )
        one.add_argument("--conversations", metavar="CHATS.jsonl", help="captions and questions, for train_lma.py")
        one.add_argument("--videos", metavar="DIR", help="finevideo: folder to write the videos to")
        splits = f"part of the set, by default the first of these: {', '.join(adapter.splits) or 'it has none'}"
        one.add_argument("--split", help=splits)
    merge = kinds.add_parser("merge", help="join lists, such as those of `liteframe scan --shard`")
    merge.add_argument(
        "lists", nargs="+", metavar="LIST.jsonl", help="each with its LIST.bad.jsonl, where there is one"
    )
    merge.add_argument("-o", "--output", required=True, metavar="OUT.jsonl", help="the bad ones go to OUT.bad.jsonl")
    merge.add_argument("--of", metavar="SOURCE", help="what was scanned: tells which of its videos are in no list")


def run(args: argparse.Namespace) -> int:
    """Writes the lists and prints license and counts; 0 if a video was found and, of merged lists, none is missing."""
    check_output(args.output)
    if args.set == "merge":
        return _merge(args)
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
    if args.conversations:
        check_output(args.conversations)
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
        from liteframe.align.conversation_rows import parse_turns  # knows all families: seconds, which merging spares

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


def _merge(args: argparse.Namespace) -> int:
    """Joins lists; 1 if a part or a video of the source is in none of them."""
    paths, output = [Path(name) for name in args.lists], Path(args.output)
    merged = MergedLists()
    for path in paths:
        merged.read(path)
    bad = {key: line for key, line in merged.bad.items() if key not in merged.good}
    missing = _missing_parts(paths)
    order = sorted(merged.good, key=_in_order)
    if args.of is not None:
        wanted = dict.fromkeys((entry.video, entry.start, entry.end) for entry in load_manifest(args.of))
        missing += [_shown(key) for key in wanted if key not in merged.good and key not in bad]
        others = [key for key in order if key not in wanted]
        order = [key for key in wanted if key in merged.good] + others
        if others:
            print(f"{len(others)} are not in {args.of}, such as {_shown(others[0])}; they are kept")
    write_lines((merged.good[key] for key in order), output)
    bad_path = output.with_name(f"{output.stem}.bad.jsonl")
    write_lines((bad[key] for key in sorted(bad, key=_in_order)), bad_path)
    mended = [key for key in merged.bad if key in merged.good]
    for what, keys in (("stand twice, with the same facts", merged.double), ("are bad in one list", mended)):
        if keys:
            print(f"{len(keys)} usable ones {what}, such as {_shown(keys[0])}; each is taken once")
    print(f"{len(order)} usable, {len(bad)} bad; wrote {output} and {bad_path}")
    for name in missing[:_SHOWN]:
        print(f"liteframe manifest: missing: {name}", file=sys.stderr)
    if len(missing) > _SHOWN:
        print(f"liteframe manifest: and {len(missing) - _SHOWN} more are missing", file=sys.stderr)
    return 1 if missing else 0


Span = tuple[str, float | None, float | None]


class MergedLists:
    """Rows of several lists, by video and span.

    Attributes:
        good: usable ones, as lines of JSON; they keep keys that manifests do not know.
        bad: the others.
        double: usable ones that stood in two lists.
    """

    def __init__(self) -> None:
        self.good: dict[Span, bytes] = {}
        self.bad: dict[Span, bytes] = {}
        self.double: list[Span] = []

    def read(self, path: Path) -> None:
        """Add a list and the bad list beside it.

        Raises:
            ValueError: there is no such list, a row is broken, or two rows tell different things of one video.
        """
        if not path.is_file():
            raise ValueError(f"{path}: no such list; give files that `liteframe scan` or `liteframe manifest` wrote")
        if path.name.endswith(".part.jsonl"):
            raise ValueError(f"{path} is of a scan that was not finished; run that scan again to its end")
        if path.name.endswith(".bad.jsonl"):
            self._read_bad(path)
            return
        for where, key, line in _rows(path):
            before = self.good.setdefault(key, line)
            if before != line:
                raise ValueError(
                    f"{where}: {_shown(key)} stands in another list with other facts ({before.decode().strip()}, here "
                    f"{line.decode().strip()}); scan the file again, and leave out the list that is older"
                )
            if before is not line:
                self.double.append(key)
        bad = path.with_name(f"{path.stem}.bad.jsonl")
        if bad.is_file():
            self._read_bad(bad)

    def _read_bad(self, path: Path) -> None:
        for where, row in read_jsonl(path):
            if not isinstance(row, dict) or not isinstance(row.get("video"), str):
                raise ValueError(f"{where}: names no 'video'; this is no list of what cannot be used")
            self.bad.setdefault((row["video"], row.get("start"), row.get("end")), json_bytes(row))


def _rows(path: Path) -> Iterator[tuple[str, Span, bytes]]:
    """Each row of a list with its place and key; its path made absolute, since the joined list may lie elsewhere."""
    inside = Containment(path.parent)
    for where, row in read_jsonl(path, "a manifest is JSONL"):
        if not isinstance(row, dict):
            raise ValueError(f'{where}: a row is an object such as {{"video": "a.mp4"}}, not {type(row).__name__}')
        entry = entry_of_row(row, local_path(row.get("video"), inside, f"{where}: 'video'"), where)
        yield where, (entry.video, entry.start, entry.end), json_bytes({**row, "video": entry.video})


def _missing_parts(paths: list[Path]) -> list[str]:
    """Lists of `scan --shard I/N` that should be among these."""
    families: dict[tuple[Path, str, int], set[int]] = {}
    for path in paths:
        if name := re.fullmatch(r"(.+)\.(\d+)-of-(\d+)\.jsonl", path.name):
            families.setdefault((path.parent, name[1], int(name[3])), set()).add(int(name[2]))
    missing = []
    for (folder, stem, count), there in families.items():
        for number in sorted(set(range(1, count + 1)) - there):
            path = folder / f"{stem}.{number}-of-{count}.jsonl"
            begun = path.with_name(f"{path.stem}.part.jsonl").is_file()
            state = (
                "is there, but not given" if path.is_file() else "was begun, run its scan again" if begun else "no file"
            )
            missing.append(f"{path} ({state})")
    return missing


def _in_order(key: Span) -> tuple[str, float, float]:
    video, start, end = key
    return in_order(video), start or 0.0, float("inf") if end is None else end


def _shown(key: Span) -> str:
    video, start, end = key
    return video if start is None and end is None else f"{video} from {start or 0:g} s to {end or 'the end'}"
