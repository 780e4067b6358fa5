"""Files of conversation data: JSONL and JSON lists of rows, InternVL's meta file, LLaVA-NeXT's mixture file."""

from __future__ import annotations

import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from liteframe.align.conversation_rows import Conversation, Locate, parse_conversation, unread_keys
from liteframe.align.pair_rows import parse_pair
from liteframe.data.paths import Containment, local_path
from liteframe.texts import jsonl_lines, parse_json, read_json, read_yaml

FORMS = (
    "a .jsonl or .json file of rows, an InternVL meta .json {name: {root, annotation}}, "
    "or a LLaVA mixture .yaml {datasets: [{json_path}]}"
)
OTHERWISE = "JSONL ends in .jsonl"
EXAMPLES = 5
BAD_ROWS = 20  # shown of a file
MOST_REPEATS = 10_000
READ_OF_META = {"annotation", "root", "repeat_time", "length", "data_augment"}
READ_OF_MIXTURE = {"json_path", "root", "sampling_strategy"}


class _Reading(NamedTuple):
    """How a row is read, what is wrong with rows, and how many have each key that is passed over."""

    parse: Callable[[dict[str, Any], str, Locate], tuple[Conversation, set[str]]]
    bad: list[str]
    unread: Counter[str]


def load_conversations(
    source: str | os.PathLike[str], unread: Counter[str] | None = None, *, pairs: bool = False
) -> list[Conversation]:
    """Read conversation data; files that it names are not opened here.

    Relative paths start at the folder of the file that holds them, or at `root` where a meta or mixture file gives
    one, and stay below it.

    Args:
        source: JSONL or a JSON list of rows (see conversation_rows); InternVL's meta JSON `{name: {root, annotation,
            repeat_time?}}` (repeat_time below 1 takes that first part, a whole number repeats); or LLaVA-NeXT's mixture
            YAML `datasets: [{json_path, sampling_strategy?: all | first:N | end:N | random:N, root?}]`, N a number or
            N%.
        unread: gets the number of rows that have each key that is passed over.
        pairs: whether rows are preference pairs (see pair_rows).

    Raises:
        ValueError: a file is missing, empty, or holds bad rows, or of one nothing is taken; the message names file,
            line and remedy of the first of them.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        raise ValueError(f"{path} is a folder; conversations come from {FORMS}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file; conversations come from {FORMS}")
    bad: list[str] = []
    reading = _Reading(parse_pair if pairs else _parse, bad, Counter() if unread is None else unread)
    if path.suffix.lower() in (".yaml", ".yml"):
        found = list(_mixture(path, reading))
    elif path.suffix.lower() == ".jsonl":
        found = _rows(jsonl_lines(path), path.parent, reading)
    else:
        content = read_json(path, OTHERWISE)
        found = (
            list(_meta(path, content, reading))
            if _is_meta(content)
            else _rows(_listed(path, content), path.parent, reading)
        )
    if len(bad) == 1:
        raise ValueError(bad[0])
    if bad:
        rest = f"\n  and {len(bad) - BAD_ROWS} more" if len(bad) > BAD_ROWS else ""
        raise ValueError("\n  ".join([f"{len(bad)} rows cannot be learned from:", *bad[:BAD_ROWS]]) + rest)
    if not found:
        raise ValueError(f"{path}: holds no conversation")
    return found


def describe_unread(unread: Counter[str]) -> str:
    """One line about the keys that are passed over; empty where there are none."""
    return ", ".join(f"{key} ({count:,})" for key, count in sorted(unread.items()))


def check_files(conversations: list[Conversation], max_missing: float) -> None:
    """Refuse a list most of whose files are not there, before anything expensive starts.

    Raises:
        ValueError: more than the part `max_missing` of the named files does not exist; names the first of them.
    """
    files = dict.fromkeys(file for c in conversations for medium in c.media for file in medium.files)
    missing = [file for file in files if not os.path.exists(file)]
    if len(missing) > max_missing * len(files):
        shown = "\n".join(f"  {file}" for file in missing[:EXAMPLES])
        raise ValueError(
            f"{len(missing)} of the {len(files)} videos and images that the conversations name do not exist:\n{shown}\n"
            "Correct the paths (relative ones start at the folder of the file, or at `root`), or remove their rows"
        )


def _rows(numbered: Iterator[tuple[str, Any]], root: Path, reading: _Reading) -> list[Conversation]:
    """The conversations of a file; what is wrong with others is added to `reading`."""
    inside = Containment(root)

    def locate(value: Any, what: str) -> str:
        return local_path(value, inside, what)

    found = []
    for where, row in numbered:
        try:
            conversation, unread = reading.parse(_object(row, where), where, locate)
        except ValueError as error:
            reading.bad.append(str(error))
        else:
            found.append(conversation)
            reading.unread.update(unread)
    return found


def _parse(row: dict[str, Any], where: str, locate: Locate) -> tuple[Conversation, set[str]]:
    return parse_conversation(row, where, locate), unread_keys(row)


def _part(file: Path, root: Path, reading: _Reading) -> list[Conversation]:
    """The conversations of a file that a meta or mixture file names."""
    before = len(reading.bad)
    rows = jsonl_lines(file) if file.suffix.lower() == ".jsonl" else _listed(file, read_json(file, OTHERWISE))
    found = _rows(rows, root, reading)
    if not found and len(reading.bad) == before:
        raise ValueError(f"{file}: holds no conversation")
    return found


def _listed(path: Path, rows: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(rows, list):
        raise ValueError(f"{path}: holds a {type(rows).__name__}; conversations come from {FORMS}")
    return ((f"{path}: row {number}", row) for number, row in enumerate(rows, 1))


def _object(row: Any, where: str) -> dict[str, Any]:
    if isinstance(row, bytes):
        row = parse_json(row, where)
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a row is a JSON object, not {type(row).__name__}")
    return row


def _is_meta(content: Any) -> bool:
    return isinstance(content, dict) and any(isinstance(v, dict) and "annotation" in v for v in content.values())


def _meta(path: Path, content: Any, reading: _Reading) -> Iterator[Conversation]:
    for name, part in content.items():
        where = f"{path}: {name!r}"
        if not isinstance(part, dict) or "annotation" not in part:
            raise ValueError(f"{where} is {part!r}; it must be an object with 'annotation' and 'root'")
        annotation = _file(part["annotation"], path.parent, f"{where}: annotation")
        if part.get("data_augment"):
            raise ValueError(
                f"{where}: data_augment is {part['data_augment']!r}, and no picture is changed; set it to false"
            )
        reading.unread.update(f"{key} of a meta file" for key in part.keys() - READ_OF_META)
        found = _part(annotation, _root(part, annotation, path.parent, where), reading)
        repeat = part.get("repeat_time", 1)
        if isinstance(repeat, bool) or not isinstance(repeat, int | float) or not 0 < repeat <= MOST_REPEATS:
            raise ValueError(f"{where}: repeat_time is {repeat!r}; it must be a positive number up to {MOST_REPEATS:,}")
        if repeat > 1 and repeat != int(repeat):
            raise ValueError(f"{where}: repeat_time is {repeat!r}; it is a part of 1, or how many times")
        taken = found[: int(len(found) * repeat)] if repeat < 1 else found * int(repeat)
        yield from _some(taken, found, f"{where}: repeat_time {repeat}")


def _some(taken: list[Conversation], found: list[Conversation], what: str) -> list[Conversation]:
    if found and not taken:
        raise ValueError(f"{what} takes none of {len(found)} rows; take more of them, or leave the part out")
    return taken


def _mixture(path: Path, reading: _Reading) -> Iterator[Conversation]:
    content = read_yaml(path)
    parts = content.get("datasets") if isinstance(content, dict) else None
    if not isinstance(parts, list) or not all(isinstance(part, dict) and "json_path" in part for part in parts):
        raise ValueError(f"{path}: a mixture is `datasets:` with a list of `json_path: ...`")
    for number, part in enumerate(parts, 1):
        where = f"{path}: dataset {number}"
        rows = _file(part["json_path"], path.parent, f"{where}: json_path")
        reading.unread.update(f"{key} of a mixture" for key in part.keys() - READ_OF_MIXTURE)
        found = _part(rows, _root(part, rows, path.parent, where), reading)
        strategy = part.get("sampling_strategy", "all")
        yield from _some(_sampled(found, strategy, where), found, f"{where}: sampling_strategy {strategy}")


def _sampled(found: list[Conversation], strategy: Any, where: str) -> list[Conversation]:
    kind, _, amount = str(strategy).partition(":")
    if kind == "all" and not amount:
        return found
    share = amount.endswith("%")
    digits = amount.removesuffix("%")
    if kind not in ("first", "end", "random") or not digits.isdecimal() or len(digits) > 12:
        raise ValueError(f"{where}: sampling_strategy is {strategy!r}; choose all, first:N, end:N or random:N, N or N%")
    number = int(digits)
    count = min(len(found), math.ceil(len(found) * number / 100) if share else number)
    if kind == "random":
        return random.Random(0).sample(found, count)
    return found[:count] if kind == "first" else found[len(found) - count :]


def _file(value: Any, folder: Path, what: str) -> Path:
    """A file that a meta or mixture file names: whoever wrote that file may name any of this machine's."""
    if not isinstance(value, str) or not (path := folder / Path(value).expanduser()).is_file():
        raise ValueError(f"{what} is {value!r}; there is no such file (relative paths start at {folder})")
    return path


def _root(part: dict[str, Any], rows: Path, folder: Path, where: str) -> Path:
    root = part.get("root")
    if root is None:
        return rows.parent
    if not isinstance(root, str) or not (path := folder / Path(root).expanduser()).is_dir():
        raise ValueError(f"{where}: root is {root!r}; there is no such folder (relative paths start at {folder})")
    return path
