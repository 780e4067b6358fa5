"""Frames by index, exactly, or a `VideoError`: in this process, without torch.

`process.DecodeProcess` does the same in a process that can be killed; use it for files nobody has vetted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from liteframe.data.video import reader_decord, reader_pyav
from liteframe.data.video.errors import VideoError, VideoInfo
from liteframe.data.video.source import source_of

__all__ = ["MAX_BYTES", "VideoError", "VideoInfo", "probe", "read_frames"]

_READERS = ("pyav", "pyav-sequential", "decord")
MAX_BYTES = 4 << 30  # of one answer: 512 frames of 1080p, 172 of 4K


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Facts about a video: of the stream that a player shows, where a file has several.

    The frames and when they are shown come from the packets' time stamps, or, where these do not settle it (MPEG-TS,
    AVI, files cut inside a group of pictures), from decoding the whole file.

    Raises:
        VideoError: the file is no video that can be read.
    """
    return source_of(os.path.abspath(os.fspath(path))).info


def read_frames(
    path: str | os.PathLike[str],
    indices: Sequence[int],
    *,
    reader: str | None = "pyav",
    size: tuple[int, int] | None = None,
    max_bytes: int = MAX_BYTES,
    keep_open: bool = False,
) -> np.ndarray:
    """Reads frames by index, in any order, repeats allowed.

    Index n is the n-th frame in presentation order of a full sequential decode. The rotation tag is applied.

    Args:
        path: a local file; playlists and URLs are refused.
        indices: frame numbers from 0.
        reader: "pyav" (also None), or "decord" for files whose manifest row says so; PyAV steps in where decord is not
            installed, since `liteframe scan` found both to give the same frames. "pyav-sequential" decodes from the
            first frame on and counts: slow, and what an index means.
        size: `(height, width)` in pixels to scale to inside the decoder (bicubic); None keeps the file's size.
        max_bytes: largest answer; not looked at for decord, whose files were scanned.
        keep_open: let the next call go on behind the last frame, if it asks for later ones of this file.

    Returns:
        uint8 RGB `[T,H,W,3]`, T = len(indices).

    Raises:
        VideoError: the file, or one of the frames, cannot be had exactly.
        ValueError: no index, a bad size or an unknown reader.
    """
    if reader not in (None, *_READERS):
        raise ValueError(f"reader is {reader!r}; known readers: {', '.join(_READERS)}")
    if not len(indices):
        raise ValueError("no frame index given; ask for at least one frame")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"size is {size}; it is (height, width) in pixels")
    path, indices = os.path.abspath(os.fspath(path)), [int(i) for i in indices]
    if reader == "decord" and reader_decord.available():
        return reader_decord.read_frames(path, indices, size)
    from_start = reader == "pyav-sequential"
    return reader_pyav.read_frames(path, indices, size, max_bytes, from_start=from_start, keep_open=keep_open)
