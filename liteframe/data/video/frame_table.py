"""The order of a file's frames, read from its packets without decoding.

Frame n is the n-th frame in presentation order of a full sequential decode. A packet table gives that order where each
packet is one frame with its own time stamp; key frames from which decoding may start are the *anchors*. What makes an
anchor exact:

- every packet before it in decoding order is shown before it, so none of the later frames is missing;
- no frame shown after it refers to a frame before it. That holds for IDR pictures (H.264), for all IRAP pictures
  (HEVC, whose leading pictures the decoder drops), and for key frames of VP8, VP9, AV1, MPEG-2/4 and M-JPEG that have
  no leading pictures (closed groups). An H.264 recovery point (open group) does not qualify.

Whoever decodes checks each time stamp against the table, so a wrong assumption shows and is not believed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import av
import numpy as np

MAX_FRAMES = 4_000_000  # 37 hours at 30 fps; more is a broken or hostile file
_CLOSED_GROUPS = frozenset({"vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg"})
_INDEXED_CONTAINERS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"})
_H264_IDR, _HEVC_IRAP = 5, range(16, 24)


class DamagedStream(Exception):
    """The demuxer saw that bytes are missing (MPEG-TS numbers its packets), so frames are."""


@dataclass
class FrameTable:
    """Presentation order and anchors of one video stream.

    Attributes:
        pts: time stamps in presentation order, in stream time base `[frames]`; empty if they cannot be trusted.
        packets: packets that should give a frame, `len(pts)` where that is not empty.
        anchors: index of each anchor's frame, ascending; empty if decoding must start at the beginning.
        anchor_stamps: `(pts, dts)` of each anchor's packet.
        closed_groups: whether every key frame is an anchor without leading pictures, and no edit list hides a frame.
        last: ticks of the stream's time base that the last frame is shown; 0 where the file does not tell.
    """

    pts: np.ndarray
    packets: int
    anchors: np.ndarray
    anchor_stamps: list[tuple[int, int]]
    closed_groups: bool = False
    last: int = 0
    _by_pts: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Indexes the anchors by time stamp."""
        self._by_pts = {stamp[0]: int(index) for stamp, index in zip(self.anchor_stamps, self.anchors, strict=True)}

    def anchor_before(self, index: int) -> int:
        """Position in `anchors` of the last anchor at or before frame `index`."""
        return int(np.searchsorted(self.anchors, index, side="right")) - 1

    def anchor_frame(self, pts: int | None) -> int | None:
        """Frame index of the anchor whose packet has this time stamp."""
        return None if pts is None else self._by_pts.get(pts)

    def distrust(self, *, stamps: bool) -> None:
        """Forgets the anchors, and the time stamps too if `stamps`, after decoding contradicted them."""
        self.anchors, self.anchor_stamps, self._by_pts = _EMPTY, [], {}
        if stamps:
            self.pts = _EMPTY


_EMPTY = np.empty(0, dtype=np.int64)


def build_table(container: av.container.InputContainer, stream: av.VideoStream) -> FrameTable:
    """Demuxes the whole stream once.

    Raises:
        av.error.FFmpegError: the container breaks off.
        DamagedStream: packets are missing.
        OverflowError: more than `MAX_FRAMES` packets.
    """
    codec = stream.codec_context.name
    nal_size = _nal_length_size(stream)
    pts: list[int] = []
    dts: list[int] = []
    lengths: list[int] = []
    keys: list[bool] = []
    exact: list[bool] = []
    discard: list[bool] = []
    untimed = 0
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        if packet.is_corrupt:
            raise DamagedStream(f"is damaged around its packet {len(pts) + untimed}")
        if codec == "vp8" and not bytes(packet)[0] & 0x10:
            continue  # an alternate reference frame, never shown
        if len(pts) + untimed >= MAX_FRAMES:
            raise OverflowError(f"more than {MAX_FRAMES} frames")
        if packet.pts is None:
            untimed += not packet.is_discard
            continue
        pts.append(packet.pts)
        dts.append(packet.pts if packet.dts is None else packet.dts)
        lengths.append(packet.duration or 0)
        keys.append(packet.is_keyframe)
        exact.append(packet.is_keyframe and not packet.is_discard and _refreshes(packet, codec, nal_size))
        discard.append(packet.is_discard)
    packets = untimed + len(pts) - sum(discard)
    order = np.asarray(pts, dtype=np.int64)
    shown = np.sort(order[~np.asarray(discard, dtype=bool)])
    # Without a key frame first, or with leading pictures before it, decoders drop some of the first packets.
    starts_whole = len(order) > 0 and keys[0] and order.min() == order[0]
    timed = untimed == 0 and len(shown) > 0 and (np.diff(shown) > 0).all()
    if not (starts_whole and timed and container.format.name in _INDEXED_CONTAINERS):
        return FrameTable(_EMPTY, packets, _EMPTY, [])
    last = np.iinfo(np.int64).max
    follows_all_before = np.concatenate([[-last], np.maximum.accumulate(order)[:-1]]) < order
    precedes_all_after = np.concatenate([np.minimum.accumulate(order[::-1])[::-1][1:], [last]]) > order
    closed = np.asarray(exact, dtype=bool) & follows_all_before & precedes_all_after
    anchors = np.asarray(exact, dtype=bool) & follows_all_before if codec == "hevc" else closed
    places = np.flatnonzero(anchors)
    return FrameTable(
        shown,
        packets,
        np.searchsorted(shown, order[places]),
        [(pts[i], dts[i]) for i in places],
        closed_groups=not any(discard) and bool(np.array_equal(closed, np.asarray(keys, dtype=bool))),
        last=lengths[pts.index(int(shown[-1]))],
    )


def _nal_length_size(stream: av.VideoStream) -> int:
    """Bytes of the length before each NAL unit (avcC, hvcC); 0 for start codes or other codecs."""
    extra, codec = stream.codec_context.extradata or b"", stream.codec_context.name
    if codec == "h264" and len(extra) > 6 and extra[0] == 1:
        return (extra[4] & 3) + 1
    if codec == "hevc" and len(extra) > 22 and extra[0] == 1:
        return (extra[21] & 3) + 1
    return 0


def _refreshes(packet: av.Packet, codec: str, nal_size: int) -> bool:
    """Whether no later frame refers to one before this key packet, by its kind of picture."""
    if codec in _CLOSED_GROUPS:
        return True
    if nal_size == 0 or codec not in ("h264", "hevc"):
        return False
    data, offset = bytes(packet), 0
    while offset + nal_size < len(data):
        head = data[offset + nal_size]
        if codec == "h264" and head & 0x1F == _H264_IDR:
            return True
        if codec == "hevc" and (head >> 1) & 0x3F in _HEVC_IRAP:
            return True
        offset += nal_size + int.from_bytes(data[offset : offset + nal_size], "big")
    return False
