"""RUN/skipped_steps.jsonl: which steps were skipped, why, and the clips that caused it."""

import json
import math
import os
from pathlib import Path
from typing import Any

from liteframe.files import write_atomically

NAME = "skipped_steps.jsonl"


def append_row(run: Path, row: dict[str, Any]) -> None:
    """Add a row, whole or not at all as long as the machine stands."""
    data = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
    descriptor = os.open(run / NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def drop_rows_from(run: Path, step: int) -> None:
    """Forget steps that a resumed run is about to do again, from number `step` on."""
    path = run / NAME
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        # A machine that went down may leave part of the last row.
        if line.endswith("\n") and json.loads(line)["step"] < step:
            kept.append(line)
    write_atomically(path, "".join(kept).encode())


def plain(value: float) -> float | str:
    """A number that JSON can hold, or the name of one that it cannot."""
    return value if math.isfinite(value) else str(value)
