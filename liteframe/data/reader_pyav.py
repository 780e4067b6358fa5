"""The reference reader: PyAV, exact by checking every time stamp, sequential where seeking is not proven."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice

import av
import numpy as np

from liteframe.data.display import FrameConverter, Orientation
from liteframe.data.frame_table import FrameTable, build_table
from liteframe.data.video_check import check_file
from liteframe.data.video_types import VideoError, VideoInfo

MAX_PIXELS = 8192 * 8192
# Only these demuxers, only local files: a crafted file must not make FFmpeg open others.
_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,avi",
    "protocol_whitelist": "file",
}
_TABLES = 256  # packet tables kept, so that the clips of one file cost one demux


class _Contradiction(Exception):
    """Decoded frames do not follow the packet table."""


class _Source:
    """What is remembered of a file between calls."""

    def __init__(self, path: str, table: FrameTable, info: VideoInfo):
        self.path, self.table, self.info = path, table, info


_sources: OrderedDict[tuple[str, int, int], _Source] = OrderedDict()


def probe(path: str) -> VideoInfo:
    """Facts about a file; decodes all of it where only that can tell the number of frames."""
    return _source(path).info


def read_frames(path: str, indices: list[int], size: tuple[int, int] | None, max_bytes: int) -> np.ndarray:
    """Frames by index, uint8 `[T,H,W,3]`; arguments as `video_reader.read_frames`."""
    source = _source(path)
    info = source.info
    bad = [i for i in indices if not 0 <= i < info.frames]
    if bad:
        raise VideoError(path, "index", f"frame {bad[0]} was asked for; the file has {info.frames} frames")
    height, width = size or (info.height, info.width)
    if len(indices) * height * width * 3 > max_bytes:
        raise VideoError(path, "too_large", f"{len(indices)} frames of {width}x{height} exceed {max_bytes} bytes")
    out = np.empty((len(indices), height, width, 3), dtype=np.uint8)
    places: dict[int, list[int]] = {}
    for place, index in enumerate(indices):
        places.setdefault(index, []).append(place)
    convert = FrameConverter(path, size)
    for index, frame in _frames(source, sorted(places)):
        image = convert(frame)
        if image.shape != out.shape[1:]:
            raise VideoError(
                path, "unsupported", f"frame {index} is {image.shape[1]}x{image.shape[0]}, others {width}x{height}"
            )
        out[places[index]] = image
    return out


@contextmanager
def _opened(path: str) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Opens a file with one decoding thread; FFmpeg's errors leave as `VideoError`."""
    try:
        with av.open(path, options=_OPTIONS, metadata_errors="replace") as container:
            streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
            if not streams:
                raise VideoError(path, "no_video_stream", "has no video stream")
            stream = streams[0]
            for other in container.streams:
                if other is not stream:
                    other.discard = "all"  # do not even read the sound
            context = stream.codec_context
            if context is None or not context.codec.is_decoder:
                raise VideoError(path, "unsupported", "is coded in a way that this FFmpeg cannot decode")
            if context.width * context.height > MAX_PIXELS:
                raise VideoError(path, "too_large", f"its frames are {context.width}x{context.height}")
            context.thread_count = 1
            context.options = {"max_pixels": str(MAX_PIXELS)}
            yield container, stream
    except av.error.FFmpegError as error:
        raise VideoError(path, "corrupt", f"cannot be decoded: {error.strerror or type(error).__name__}") from error


def _source(path: str) -> _Source:
    check_file(path)
    status = os.stat(path)
    key = (path, status.st_mtime_ns, status.st_size)
    if key in _sources:
        _sources.move_to_end(key)
        return _sources[key]
    with _opened(path) as (container, stream):
        try:
            table = build_table(container, stream)
        except OverflowError as error:
            raise VideoError(path, "too_large", f"has {error}") from error
        if table.packets == 0:
            raise VideoError(path, "no_video_stream", "has a video stream without a single frame")
        rate = stream.average_rate or stream.guessed_rate or Fraction(1)
        base, codec, container_name = stream.time_base, stream.codec_context.name, container.format.name
    first, shape_rotation = _first_frame(path)
    if table.frames is None:
        table.counted = _count(path)
    frames = table.frames or 0
    span = float((table.pts[-1] - table.pts[0]) * base) if len(table.pts) > 1 else (frames - 1) / float(rate)
    fps = (frames - 1) / span if frames > 1 and span > 0 else float(rate)
    height, width = first
    info = VideoInfo(
        frames, fps, frames / fps, width, height, codec, container_name, shape_rotation, anchors=len(table.anchors)
    )
    _sources[key] = _Source(path, table, info)
    if len(_sources) > _TABLES:
        _sources.popitem(last=False)
    return _sources[key]


def _first_frame(path: str) -> tuple[tuple[int, int], int]:
    with _opened(path) as (container, stream):
        for frame in container.decode(stream):
            orientation = Orientation.of(frame, path)
            return orientation.shape(frame.height, frame.width), orientation.degrees
    raise VideoError(path, "corrupt", "does not give a single frame")


def _count(path: str) -> int:
    with _opened(path) as (container, stream):
        return sum(1 for _ in container.decode(stream))


def _frames(source: _Source, wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yields the wanted frames in ascending order; all of them again if decoding contradicts the packet table."""
    for use_anchors in (True, False):
        if len(source.table.pts) == 0:
            break
        try:
            yield from _timed(source, wanted, use_anchors)
            return
        except _Contradiction:
            # Seeking is at fault if decoding from the beginning agrees with the table; else the table is.
            source.table.distrust(stamps=not use_anchors)
    yield from _counted(source.path, wanted)


def _timed(source: _Source, wanted: list[int], use_anchors: bool) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decodes by the packet table: each frame's time stamp must be the table's next one."""
    table = source.table
    with _opened(source.path) as (container, stream):
        decoded = _checked(container, stream, table, 0)
        following = 0
        for index in wanted:
            place = table.anchor_before(index) if use_anchors else -1
            if place >= 0 and table.anchors[place] > following:
                following = _seek(container, stream, table, place)
                decoded = _checked(container, stream, table, following)
            found = next(islice(decoded, index - following, None), None)
            if found is None:
                raise _Contradiction
            following = index + 1
            frame, damaged = found
            if damaged:
                raise VideoError(source.path, "corrupt", f"frame {index} is damaged")
            yield index, frame


def _seek(container: av.container.InputContainer, stream: av.VideoStream, table: FrameTable, place: int) -> int:
    """Goes to an anchor, or to an earlier one where the demuxer lands there; returns its frame index."""
    for stamp in table.anchor_stamps[place]:
        container.seek(stamp, stream=stream)
        landed = next((packet.pts for packet in container.demux(stream) if packet.size), None)
        start = table.anchor_frame(landed)
        if start is not None and start <= table.anchors[place]:
            container.seek(stamp, stream=stream)
            return start
    raise _Contradiction


def _checked(
    container: av.container.InputContainer, stream: av.VideoStream, table: FrameTable, start: int
) -> Iterator[tuple[av.VideoFrame, bool]]:
    """Frames from `start` on, each checked against the table; leading pictures before it are dropped."""
    following = start
    for frame, damaged in _decoded(container, stream):
        if following == start and frame.pts is not None and frame.pts < table.pts[start]:
            continue
        if following >= len(table.pts) or frame.pts != table.pts[following]:
            raise _Contradiction
        following += 1
        yield frame, damaged


def _counted(path: str, wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decodes from the beginning and counts."""
    left = iter(wanted)
    index = next(left, None)
    with _opened(path) as (container, stream):
        for count, (frame, damaged) in enumerate(_decoded(container, stream)):
            if count == index:
                if damaged:
                    raise VideoError(path, "corrupt", f"frame {index} is damaged")
                yield count, frame
                index = next(left, None)
                if index is None:
                    return
    raise VideoError(path, "corrupt", f"frame {index} could not be reached by decoding from the beginning")


def _decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[tuple[av.VideoFrame, bool]]:
    """Frames, each with whether it, or a frame that it may refer to, is damaged."""
    damaged = False
    for frame in container.decode(stream):
        damaged = frame.is_corrupt or (damaged and not frame.key_frame)
        yield frame, damaged
