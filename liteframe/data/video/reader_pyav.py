"""The reference reader: PyAV, exact by checking every time stamp, sequential where seeking is not proven."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice

import av
import numpy as np

from liteframe.data.video.errors import VideoError
from liteframe.data.video.frame_table import FrameTable
from liteframe.data.video.orientation import FrameConverter
from liteframe.data.video.source import VideoSource, decoded_stamps, open_video, source_of


class _Contradiction(Exception):
    """Decoded frames do not follow the packet table."""


def read_frames(
    path: str,
    indices: list[int],
    size: tuple[int, int] | None,
    max_bytes: int,
    *,
    from_start: bool = False,
    keep_open: bool = False,
) -> np.ndarray:
    """Frames by index, uint8 `[T,H,W,3]`; arguments as `reader.read_frames`.

    `from_start` decodes from the first frame on and counts, without looking at time stamps: the definition of what an
    index means, against which `liteframe scan` holds the quicker ways.
    """
    source = source_of(path)
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
    convert = FrameConverter(path, size, source.aspect)
    wanted = sorted(places)
    for index, frame in _counted(source, wanted) if from_start else _frames(source, wanted, keep_open):
        image = convert(frame)
        if image.shape != out.shape[1:]:
            shape = f"{image.shape[1]}x{image.shape[0]}"
            raise VideoError(path, "unsupported", f"changes size: frame {index} is {shape}, others {width}x{height}")
        out[places[index]] = image
    return out


def _frames(source: VideoSource, wanted: list[int], keep_open: bool) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yields the wanted frames in ascending order; all of them again if decoding contradicts the packet table."""
    for use_anchors in (True, False):
        if len(source.table.pts) == 0:
            break
        try:
            yield from _timed(source, wanted, use_anchors, keep_open)
            return
        except _Contradiction:
            # Seeking is at fault if decoding from the beginning agrees with the table. Else the stamps are, unless
            # frames are missing: then nobody can say which ones the others are.
            if not use_anchors:
                _require_all(source)
            source.table.distrust(stamps=not use_anchors)
    yield from _counted(source, wanted)


def _require_all(source: VideoSource) -> None:
    count = len(decoded_stamps(source.path, source.info.video_track))
    if count != source.info.frames:
        raise VideoError(source.path, "corrupt", f"only {count} of its {source.info.frames} frames can be decoded")


def _timed(
    source: VideoSource, wanted: list[int], use_anchors: bool, keep_open: bool
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decodes by the packet table: each frame's time stamp must be the table's next one."""
    global _left_open
    opened, _left_open = _left_open, None
    with ExitStack() as stack:
        if opened is not None:
            stack.push(opened.stack)
        if opened is None or not (use_anchors and opened.source is source and opened.following <= wanted[0]):
            stack.close()
            container, stream = stack.enter_context(open_video(source.path, source.info.video_track))
            opened = _Opened(source, container, stream, stack, _checked(container, stream, source.table, 0))
        for index in wanted:
            yield index, opened.frame(index, use_anchors)
        if keep_open:
            opened.stack, _left_open = stack.pop_all(), opened


@dataclass
class _Opened:
    """A file that is decoded by its packet table, forward.

    Attributes:
        source, container, stream: of the file.
        stack: closes it.
        decoded: frames, each with whether it is damaged.
        following: the first of them.
    """

    source: VideoSource
    container: av.container.InputContainer
    stream: av.VideoStream
    stack: ExitStack
    decoded: Iterator[tuple[av.VideoFrame, bool]]
    following: int = 0

    def frame(self, index: int, use_anchors: bool) -> av.VideoFrame:
        """A frame that has not been passed by, from the nearest anchor before it if that lies ahead."""
        table = self.source.table
        place = table.anchor_before(index) if use_anchors else -1
        if place >= 0 and table.anchors[place] > self.following:
            self.following = _seek(self.container, self.stream, table, place)
            self.decoded = _checked(self.container, self.stream, table, self.following)
        found = next(islice(self.decoded, index - self.following, None), None)
        if found is None:
            raise _Contradiction
        self.following = index + 1
        frame, damaged = found
        if damaged:
            raise VideoError(self.source.path, "corrupt", f"frame {index} is damaged")
        return frame


_left_open: _Opened | None = None  # by a call after which another is to go on


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


def _counted(source: VideoSource, wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decodes from the beginning and counts."""
    left = iter(wanted)
    index = next(left, None)
    path = source.path
    with open_video(path, source.info.video_track) as (container, stream):
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
