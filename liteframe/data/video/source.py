"""Opening a video with PyAV, and what is remembered of it between calls."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import av

from liteframe.data.video.container_check import check_file
from liteframe.data.video.errors import VideoError, VideoInfo
from liteframe.data.video.frame_table import DamagedStream, FrameTable, build_table
from liteframe.data.video.orientation import Orientation

MAX_PIXELS = 8192 * 8192
# Only these demuxers, only local files: a crafted file must not make FFmpeg open others.
_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,avi",
    "protocol_whitelist": "file",
}
_REMEMBERED = 256  # files whose packet tables are kept, so that the clips of one file cost one demux


@dataclass
class VideoSource:
    """A file that was looked through: facts and packet table."""

    path: str
    info: VideoInfo
    table: FrameTable


_sources: OrderedDict[tuple[str, int, int], VideoSource] = OrderedDict()


@contextmanager
def open_video(path: str) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Opens the first video stream of a file for decoding in one thread; FFmpeg's errors leave as `VideoError`."""
    try:
        with av.open(path, options=_OPTIONS, metadata_errors="replace") as container:
            stream = _video_stream(path, container)
            context = stream.codec_context
            context.thread_count = 1
            context.options = {"max_pixels": str(MAX_PIXELS)}
            yield container, stream
    except av.error.FFmpegError as error:
        raise VideoError(path, "corrupt", f"cannot be decoded: {error.strerror or type(error).__name__}") from error


def source_of(path: str) -> VideoSource:
    """Looks through a file, or recalls it if it has not changed since.

    Raises:
        VideoError: the file is no video that can be read.
    """
    try:
        status = os.stat(path)
        key = (path, status.st_mtime_ns, status.st_size)
    except (OSError, ValueError):
        key = (path, 0, 0)  # check_file says what is wrong
    if key not in _sources:
        check_file(path)
        _sources[key] = _look_through(path)
        if len(_sources) > _REMEMBERED:
            _sources.popitem(last=False)
    _sources.move_to_end(key)
    return _sources[key]


def count_frames(path: str) -> tuple[int, float]:
    """Decodes everything; number of frames and seconds from the first to the last."""
    count, first, last = 0, None, None
    with open_video(path) as (container, stream):
        for frame in container.decode(stream):
            count += 1
            first, last = frame.time if first is None else first, frame.time
    return count, (last or 0.0) - (first or 0.0)


def _video_stream(path: str, container: av.container.InputContainer) -> av.VideoStream:
    videos = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not videos:
        raise VideoError(path, "no_video_stream", "has no video stream")
    for other in container.streams:
        if other is not videos[0]:
            other.discard = av.stream.Discard.all  # do not even read the sound
    context = videos[0].codec_context
    if context is None:
        raise VideoError(path, "unsupported", "is coded in a way that this FFmpeg cannot decode")
    if context.width * context.height > MAX_PIXELS:
        raise VideoError(path, "too_large", f"has frames of {context.width}x{context.height}")
    return videos[0]


def _look_through(path: str) -> VideoSource:
    with open_video(path) as (container, stream):
        try:
            table = build_table(container, stream)
        except OverflowError as error:
            raise VideoError(path, "too_large", f"has {error}") from error
        except DamagedStream as error:
            raise VideoError(path, "corrupt", str(error)) from error
        if table.packets == 0:
            raise VideoError(path, "no_video_stream", "has a video stream without a single frame")
        rate = float(stream.average_rate or stream.guessed_rate or 1)
        time_base, codec, container_name = (
            stream.time_base or Fraction(1),
            stream.codec_context.name,
            container.format.name,
        )
    (height, width), rotation = _first_frame(path)
    if len(table.pts):
        frames, span = len(table.pts), float(int(table.pts[-1] - table.pts[0]) * time_base)
    else:
        frames, span = count_frames(path)
    fps = (frames - 1) / span if frames > 1 and span > 0 else rate
    facts = (frames, fps, frames / fps, width, height, codec, container_name, rotation)
    return VideoSource(path, VideoInfo(*facts, len(table.anchors), table.closed_groups), table)


def _first_frame(path: str) -> tuple[tuple[int, int], int]:
    """Size as shown and rotation, from the frame itself: headers can be wrong."""
    with open_video(path) as (container, stream):
        for frame in container.decode(stream):
            orientation = Orientation.of(frame, path)
            return orientation.shape(frame.height, frame.width), orientation.degrees
    raise VideoError(path, "corrupt", "does not give a single frame")
