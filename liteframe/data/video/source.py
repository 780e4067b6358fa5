"""Opening a video with PyAV, and what is remembered of it between calls."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np

from liteframe.data.video.container_check import check_file
from liteframe.data.video.errors import VideoError, VideoInfo
from liteframe.data.video.frame_table import DamagedStream, FrameTable, build_table
from liteframe.data.video.orientation import Orientation, pixel_aspect, shown_size
from liteframe.data.video.timeline import timeline_of

MAX_PIXELS = 8192 * 8192
# Only these demuxers, only local files: a crafted file must not make FFmpeg open others.
_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,avi",
    "protocol_whitelist": "file",
}
_Kind = av.stream.Disposition
_REMEMBERED = 256  # files whose packet tables are kept, so that the clips of one file cost one demux


@dataclass
class VideoSource:
    """A file that was looked through: facts, packet table, and width over height of its pixels."""

    path: str
    info: VideoInfo
    table: FrameTable
    aspect: Fraction


_sources: OrderedDict[tuple[str, int, int], VideoSource] = OrderedDict()


@contextmanager
def open_video(path: str, track: int) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Opens a video stream, by its number in the file, for decoding in one thread.

    Raises:
        VideoError: FFmpeg cannot decode it, or it is too large.
    """
    with _opened(path) as container:
        stream = container.streams[track]
        for other in container.streams:
            if other is not stream:
                other.discard = av.stream.Discard.all  # do not even read the sound
        assert isinstance(stream, av.VideoStream)
        context = stream.codec_context
        if context is None:
            raise VideoError(path, "unsupported", "is coded in a way that this FFmpeg cannot decode")
        if context.width * context.height > MAX_PIXELS:
            raise VideoError(path, "too_large", f"has frames of {context.width}x{context.height}")
        context.thread_count = 1
        context.options = {"max_pixels": str(MAX_PIXELS)}
        yield container, stream


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


def decoded_stamps(path: str, track: int) -> np.ndarray:
    """Decodes everything; the frames' time stamps in ticks of the stream, float64 `[frames]`, NaN where one lacks."""
    with open_video(path, track) as (container, stream):
        return np.array([np.nan if frame.pts is None else frame.pts for frame in container.decode(stream)], dtype=float)


@contextmanager
def _opened(path: str) -> Iterator[av.container.InputContainer]:
    try:
        with av.open(path, options=_OPTIONS, metadata_errors="replace") as container:
            yield container
    except av.error.FFmpegError as error:
        raise VideoError(path, "corrupt", f"cannot be decoded: {error.strerror or type(error).__name__}") from error


def _find_track(path: str) -> tuple[int, int]:
    """Number of the stream that a player shows, and how many video streams there are.

    Covers and thumbnails are passed over; then a stream that is marked default goes before others, and a longer one
    before a shorter.
    """
    with _opened(path) as container:
        streams = list(container.streams.video)
        shown = [s for s in streams if not s.disposition & (_Kind.attached_pic | _Kind.timed_thumbnails)]
        if not shown:
            raise VideoError(path, "no_video_stream", "has no video stream")
        shown = [s for s in shown if s.disposition & _Kind.default] or shown
        if len(shown) == 1:
            return shown[0].index, len(streams)
        ends = {stream.index: Fraction(0) for stream in shown}  # in seconds
        for packet in container.demux(shown):
            if packet.pts is not None and packet.time_base:
                end = (packet.pts + (packet.duration or 0)) * packet.time_base
                ends[packet.stream.index] = max(ends[packet.stream.index], end)
        return max(ends, key=lambda index: (ends[index], -index)), len(streams)


def _look_through(path: str) -> VideoSource:
    track, tracks = _find_track(path)
    with open_video(path, track) as (container, stream):
        try:
            table = build_table(container, stream)
        except OverflowError as error:
            raise VideoError(path, "too_large", f"has {error}") from error
        except DamagedStream as error:
            raise VideoError(path, "corrupt", str(error)) from error
        if table.packets == 0:
            raise VideoError(path, "no_video_stream", "has a video stream without a single frame")
        rate = float(stream.average_rate or stream.guessed_rate or 1)
        unit, codec, container_name = stream.time_base or Fraction(1), stream.codec_context.name, container.format.name
        sound = _sound_start(container, stream)
        begins = None if container_name != "avi" else (stream.start_time or 0)
    (height, width), rotation, aspect = _first_frame(path, track)
    ticks = table.pts.astype(float) if len(table.pts) else decoded_stamps(path, track)
    if begins is not None and not np.isnan(ticks[0]):
        ticks += begins - ticks[0]  # AVI has no time stamps; FFmpeg's start late where the codec reorders frames
    first = Fraction(0) if np.isnan(ticks[0]) else int(ticks[0]) * unit
    origin = first if sound is None else min(first, max(sound, Fraction(0)))
    timeline, broken = timeline_of(ticks, unit, header_rate=rate, origin=origin, last=table.last)
    facts = (len(ticks), timeline.fps, timeline.breaks, width, height, codec, container_name, rotation)
    marks = (len(table.anchors), table.closed_groups, track, tracks, broken, aspect == 1)
    return VideoSource(path, VideoInfo(*facts, *marks), table, aspect)


def _sound_start(container: av.container.InputContainer, stream: av.VideoStream) -> Fraction | None:
    """Seconds at which the other streams begin that are heard or seen; None where there are none.

    What begins before 0 there is an encoder's run-up, which no player plays.
    """
    others = [s for s in container.streams if s is not stream and s.type in ("audio", "video")]
    others = [s for s in others if not s.disposition & _Kind.attached_pic]
    return min((s.start_time * s.time_base for s in others if s.start_time is not None and s.time_base), default=None)


def _first_frame(path: str, track: int) -> tuple[tuple[int, int], int, Fraction]:
    """Size as shown, rotation and shape of pixels, from the frame itself: headers can be wrong."""
    with open_video(path, track) as (container, stream):
        for frame in container.decode(stream):
            orientation = Orientation.of(frame, path)
            aspect = pixel_aspect(stream)
            height, width = shown_size(frame, orientation, aspect)
            if height * width > MAX_PIXELS:
                reason = f"is shown at {width}x{height}, with pixels {float(aspect):g} times as wide as high"
                raise VideoError(path, "too_large", reason)
            return (height, width), orientation.degrees, aspect
    raise VideoError(path, "corrupt", "does not give a single frame")
