"""JSON and YAML that users bring, read with the place of what is wrong with them: the one place."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MAX_DEPTH = 100  # of lists in lists: far below what Python's own recursion stands
# One of the two escapes that make a rare character, and one that stands alone, as where a text was cut between them.
_PART = re.compile(rb"\\u[dD][89a-fA-F]")
_HALF = re.compile(rb"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]..", re.DOTALL)


def read_json(path: Path, remedy: str = "") -> Any:
    """The values of a JSON file; what `parse_json` takes and refuses.

    Raises:
        ValueError: it is not JSON; names file, line and `remedy`.
    """
    return parse_json(path.read_bytes(), str(path), remedy, lines=True)


def read_jsonl(path: Path, remedy: str = "") -> Iterator[tuple[str, Any]]:
    """Each row of a JSONL file with where it stands, `file:3`.

    Raises:
        ValueError: a row is not JSON; names file, line and `remedy`.
    """
    for where, line in jsonl_lines(path):
        yield where, parse_json(line, where, remedy)


def jsonl_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """The lines of a file that are not blank, with where each stands, `file:3`."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.removeprefix(codecs.BOM_UTF8).strip():
                yield f"{path}:{number}", line


def parse_json(data: bytes, where: str, remedy: str = "", *, lines: bool = False) -> Any:
    """The values of UTF-8 text, with or without a byte order mark; NaN and Infinity are numbers.

    Args:
        data: of a file, or a line of one.
        where: how the message begins.
        remedy: how the message ends.
        lines: whether the message tells the line within `data`, too.

    Raises:
        ValueError: it is not JSON, has a key twice in one object (the first would be passed over), half of a character
            (which no file and no tokenizer takes), more than MAX_DEPTH lists or objects in each other, or a number of
            thousands of digits.
    """
    try:
        values = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_unique)
        if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _too_deep(values):
            raise RecursionError
        if _PART.search(data):
            json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except (ValueError, RecursionError) as error:
        raise _named(error, data, where, remedy, lines=lines) from error
    return values


def read_yaml(path: Path, remedy: str = "") -> Any:
    """The plain values of a YAML file of UTF-8 text, with or without a byte order mark.

    Raises:
        ValueError: it is not YAML, or has what `parse_json` refuses; names file, line where it is known, and `remedy`.
    """
    data = path.read_bytes()
    try:
        return yaml.load(data.decode("utf-8-sig"), _UniqueKeys)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _named(error, data, str(path), remedy, lines=True) from error


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, of which PyYAML passes over the first, and half characters."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=_twice(key.value), problem_mark=key.start_mark)
            seen.add(str(key.value))
        return node

    def compose_scalar_node(self, anchor: Any) -> Any:
        node = super().compose_scalar_node(anchor)
        node.value.encode("utf-8", "surrogateescape")
        return node


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(_twice(max(names, key=names.count)))
    return values


def _twice(key: str) -> str:
    return f"the key {key!r} stands twice in one object; keep one of them"


def _too_deep(values: Any) -> bool:
    level = [values]
    for _ in range(MAX_DEPTH):
        inner = [value for held in level for value in (held.values() if isinstance(held, dict) else held)]
        level = [value for value in inner if isinstance(value, dict | list)]
        if not level:
            return False
    return True


def _named(error: Exception, data: bytes, where: str, remedy: str, *, lines: bool) -> ValueError:
    """What a reader of `data` raised, with its place and what to do."""
    line: int | None = None
    reason = str(error)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data[:4]:
        reason = "not UTF-8 text (perhaps UTF-16, as PowerShell writes it; save it as UTF-8)"
    elif isinstance(error, json.JSONDecodeError):
        line, reason = error.lineno, f"not JSON ({error.msg} at column {error.colno})"
    elif isinstance(error, UnicodeDecodeError):
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        reason = f"not UTF-8 text ({error.reason} at byte {column})"
    elif isinstance(error, UnicodeEncodeError):
        half = _HALF.search(data)
        line = data.count(b"\n", 0, half.start()) + 1 if half else None
        reason = f"holds half of a character ({error.object[error.start]!a})"
    elif isinstance(error, RecursionError):
        reason = f"more than {MAX_DEPTH} lists or objects stand in each other"
    elif isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark or error.context_mark):
        line, reason = mark.line + 1, f"not YAML ({error.problem or error.context})"
    elif isinstance(error, yaml.YAMLError):
        reason = f"not YAML ({error})"
    return ValueError(f"{where}{f':{line}' if lines and line else ''}: {reason}{f'; {remedy}' if remedy else ''}")
