"""Annotation files: JSON lists and JSONL, with file and line in every error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_DAMAGED = "the download is damaged or incomplete: fetch the file again"


def read_list(path: Path) -> Iterator[tuple[str, Any]]:
    """Each item of a JSON list, with where it stands (`file: record 3`).

    Raises:
        ValueError: not JSON (file and line), or not a list.
    """
    try:
        items = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{error.lineno}: not JSON ({error.msg} at column {error.colno}); {_DAMAGED}"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason}); {_DAMAGED}") from error
    if not isinstance(items, list):
        raise ValueError(f"{path}: holds {type(items).__name__}, not a list of records; is it another file's name?")
    for number, item in enumerate(items, 1):
        yield f"{path}: record {number}", item


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Each row of a JSONL file, with where it stands (`file:3`).

    Raises:
        ValueError: a line is not JSON (file and line).
    """
    number = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path}:{number}", json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{number}: not JSON ({error.msg} at column {error.colno}); {_DAMAGED}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{number + 1}: not UTF-8 text ({error.reason}); {_DAMAGED}") from error
