"""What a file is and whether it is all there, from its own bytes, before a decoder sees it.

FFmpeg guesses a format from content and will follow a text playlist whatever its name is; decord cannot be told not to.
It also opens files that were cut off and fails, or not, somewhere in the middle. Both are settled here.
"""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

from liteframe.data.video.errors import VideoError

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


_HEAD = 4096
_PLAYLISTS = (b"#extm3u", b"ffconcat", b"[playlist]", b"<?xml", b"<mpd", b"<smil", b"<asx", b"#!", b"v=0")
_OTHER_MEDIA = {b"OggS": "Ogg", b"FLV": "Flash video", b"\x30\x26\xb2\x75": "ASF/WMV", b"\x00\x00\x01\xba": "MPEG-PS"}
_MOV_BOXES = {b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"wide", b"free", b"skip", b"pnot", b"uuid", b"sidx"}
_TS_SYNC, _TS_PACKETS = 0x47, ((188, 0), (192, 4), (204, 0))  # packet size, offset of the sync byte


def check_file(path: str) -> str:
    """Returns the container family: "mov", "matroska", "avi" or "mpegts".

    Raises:
        VideoError: missing, not_a_file, unreadable, empty, playlist, not_video, unsupported or truncated.
    """
    try:
        mode = os.stat(path)
    except FileNotFoundError:
        raise VideoError(path, "missing", "there is no such file") from None
    except (OSError, ValueError) as error:
        raise VideoError(path, "unreadable", f"cannot be looked up: {error}") from error
    if not stat.S_ISREG(mode.st_mode):
        what = "a folder" if stat.S_ISDIR(mode.st_mode) else "a pipe, socket or device"
        raise VideoError(path, "not_a_file", f"is {what}")
    if mode.st_size == 0:
        raise VideoError(path, "empty", "has zero bytes")
    try:
        with open(path, "rb") as file:
            return _check_content(path, file, mode.st_size)
    except OSError as error:
        raise VideoError(path, "unreadable", f"cannot be read: {error.strerror or error}") from error


def _check_content(path: str, file: BinaryIO, size: int) -> str:
    head = file.read(_HEAD)
    if head[4:8] in _MOV_BOXES:
        _check_mov(path, file, size)
        return "mov"
    if head.startswith(EBML):
        check_matroska(path, file, size)
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        _check_avi(path, head, size)
        return "avi"
    if _is_mpegts(head):
        return "mpegts"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PLAYLISTS):
        raise VideoError(path, "playlist", "is a text playlist or script, whatever its name says")
    for signature, name in _OTHER_MEDIA.items():
        if head.startswith(signature):
            raise VideoError(path, "unsupported", f"is {name}; mp4/mov, mkv/webm, MPEG-TS and AVI are read")
    if not any(head):
        raise VideoError(path, "not_video", "holds only zeros at its beginning")
    what = "text" if _is_text(head) else "no container that is read here (mp4/mov, mkv/webm, MPEG-TS, AVI)"
    raise VideoError(path, "not_video", f"is {what}")


def _check_mov(path: str, file: BinaryIO, size: int) -> None:
    """Walks the top-level boxes: each must end inside the file and `moov` must be among them."""
    offset, seen = 0, set()
    while offset + 8 <= size:
        file.seek(offset)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        elif length == 0:
            length = size - offset
        if length < 8 or not kind.isalnum():
            break  # trailing junk after the last box is common and harmless
        if offset + length > size and kind in _MOV_BOXES:
            missing = offset + length - size
            raise VideoError(path, "truncated", f"is cut off: its {kind.decode()} box lacks {missing} bytes")
        seen.add(kind)
        offset += length
    if b"moov" not in seen:
        raise VideoError(path, "truncated", "has no index (moov box): the recording or the copy never finished")


def _check_avi(path: str, head: bytes, size: int) -> None:
    length = int.from_bytes(head[4:8], "little")
    # writers that were killed, or that stream, leave 0 or all ones
    if length in (0, 0xFFFFFFFF):
        return
    missing = 8 + length - size
    if missing > 0:
        raise VideoError(path, "truncated", f"is cut off: it lacks {missing} bytes")


def _is_mpegts(head: bytes) -> bool:
    for packet, offset in _TS_PACKETS:
        sync = head[offset::packet][:5]
        if len(sync) >= 2 and all(byte == _TS_SYNC for byte in sync):
            return True
    return False


def _is_text(head: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\r\n\f" for byte in head)
