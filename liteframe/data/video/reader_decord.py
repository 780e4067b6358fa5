"""decord, for files on which `liteframe scan` found it exact. The only file that imports it.

decord hangs on some MPEG-TS files and gives wrong frames for open groups and edit lists, without an error. So nobody
calls this for a file that was not scanned, and the process that does can be killed.
"""

from __future__ import annotations

import importlib.util
import logging
from functools import cache

import numpy as np

from liteframe.data.video.container_check import check_file
from liteframe.data.video.errors import VideoError

_log = logging.getLogger(__name__)


@cache
def available() -> bool:
    """Whether decord is installed; it has wheels for Linux on x86_64 only."""
    found = importlib.util.find_spec("decord") is not None
    if not found:
        _log.warning(
            "decord is not installed here: files marked reader=decord are read with PyAV (same frames, slower)"
        )
    return found


def read_frames(path: str, indices: list[int], size: tuple[int, int] | None) -> np.ndarray:
    """Frames by index, uint8 `[T,H,W,3]`; arguments as `reader.read_frames`.

    Raises:
        VideoError: not a video, index out of range, or decord's own error as corrupt.
    """
    import decord

    check_file(path)
    height, width = size or (-1, -1)
    try:
        reader = decord.VideoReader(path, ctx=decord.cpu(0), width=width, height=height, num_threads=1)
        total = len(reader)
        bad = [i for i in indices if not 0 <= i < total]
        if bad:
            raise VideoError(path, "index", f"frame {bad[0]} was asked for; decord sees {total} frames")
        return reader.get_batch(indices).asnumpy()
    except UnicodeEncodeError as error:
        raise VideoError(path, "unreadable", "has a name that is not UTF-8, which decord cannot open") from error
    except (decord.DECORDError, RuntimeError) as error:
        # the first line names the failed check; the rest is a C++ stack
        reason = str(error).strip().splitlines()[0]
        raise VideoError(path, "corrupt", f"cannot be decoded by decord: {reason}") from error
