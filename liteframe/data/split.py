"""A held-out part of a list of videos that stays the same when the list is shuffled, moved or grows."""

import hashlib
import os
from collections.abc import Sequence

from liteframe.data.manifest import VideoEntry


def hold_out(entries: Sequence[VideoEntry], fraction: float) -> tuple[list[VideoEntry], list[VideoEntry]]:
    """Split into training and validation entries by a hash of the file's name below the folder common to all.

    All rows of one file fall on the same side. With a fraction above 0 and two files or more, both sides get one at
    least.

    Raises:
        ValueError: the fraction is not within [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"data.val_fraction is {fraction}; it must lie in [0, 1)")
    files = sorted({entry.video for entry in entries})
    if fraction == 0 or len(files) < 2:
        return list(entries), []
    root = os.path.commonpath([os.path.dirname(file) for file in files])
    place = {file: _hash(os.path.relpath(file, root)) for file in files}
    held = {file for file in files if place[file] < fraction}
    ranked = sorted(files, key=place.__getitem__)
    held = (held | {ranked[0]}) - {ranked[-1]}
    return (
        [entry for entry in entries if entry.video not in held],
        [entry for entry in entries if entry.video in held],
    )


def _hash(name: str) -> float:
    """A number in [0, 1) that depends on the name only."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big") / 2**56
