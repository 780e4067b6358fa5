"""Whether a Matroska or WebM file is whole: its elements must follow one another without a gap up to its end.

FFmpeg's demuxer searches for the next cluster after a damaged place and goes on, without an error: frames are missing
and all later ones have the wrong number. Element identifiers are those of RFC 9559.
"""

from __future__ import annotations

from typing import BinaryIO

from liteframe.data.video_types import VideoError

EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675
_VOID, _CRC = 0xEC, 0xBF
# seek head, info, tracks, cues, attachments, chapters, tags
_TOP = {_CLUSTER, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367, _VOID, _CRC}
_SIMPLE_BLOCK = 0xA3
# time stamp, silent tracks, position, previous size, block group, encrypted block
_IN_CLUSTER = {_SIMPLE_BLOCK, 0xE7, 0x5854, 0xA7, 0xAB, 0xA0, 0xAF, _VOID, _CRC}
_HEADER_BYTES = 12  # longest identifier and size
_MAX_CLUSTER = 1 << 28  # larger ones are not read into memory


def check_matroska(path: str, file: BinaryIO, size: int) -> None:
    """Walks the segment's elements and those of its clusters; payloads are not looked at.

    Files of unknown size, as live recorders write them, are checked up to the first cluster of unknown size.

    Raises:
        VideoError: truncated or corrupt.
    """
    _, length, start = _element(file, 0)
    identifier, length, start = _element(file, start + (length or 0))
    if start > size:
        raise VideoError(path, "truncated", "ends inside its header")
    if identifier != _SEGMENT:
        raise VideoError(path, "corrupt", "has a damaged Matroska header")
    end = size if length is None else start + length
    if end > size:
        raise VideoError(path, "truncated", f"is cut off: it lacks {end - size} bytes")
    while start < end:
        here = start
        identifier, length, start = _element(file, here)
        if identifier not in _TOP:
            raise VideoError(path, "corrupt", f"is damaged at byte {here}")
        if length is None:
            return
        if start + length > end:
            raise VideoError(path, "truncated", f"is cut off inside the element at byte {here}")
        if identifier == _CLUSTER and length <= _MAX_CLUSTER:
            file.seek(start)
            _check_cluster(path, file.read(length), start)
        start += length


def _check_cluster(path: str, data: bytes, base: int) -> None:
    offset = 0
    while offset < len(data):
        identifier, length, start = _parse(data, offset)
        stop = start + (length or 0)
        # a block begins with its track's number, which is never 0
        nameless = identifier == _SIMPLE_BLOCK and data[start : start + 1] == b"\0"
        if identifier not in _IN_CLUSTER or length is None or stop > len(data) or nameless:
            raise VideoError(path, "corrupt", f"is damaged at byte {base + offset}")
        offset = stop


def _element(file: BinaryIO, offset: int) -> tuple[int, int | None, int]:
    """Identifier, length (None: unknown) and start of the payload of the element at `offset`."""
    file.seek(offset)
    identifier, length, start = _parse(file.read(_HEADER_BYTES), 0)
    return identifier, length, offset + start


def _parse(data: bytes, offset: int) -> tuple[int, int | None, int]:
    first = data[offset] if offset < len(data) else 0
    size_at = offset + 9 - first.bit_length()
    identifier = int.from_bytes(data[offset:size_at], "big")
    first = data[size_at] if size_at < len(data) else 0
    width = 9 - first.bit_length()
    value = int.from_bytes(data[size_at : size_at + width], "big") & ((1 << 7 * width) - 1)
    return identifier, None if value == (1 << 7 * width) - 1 else value, size_at + width
