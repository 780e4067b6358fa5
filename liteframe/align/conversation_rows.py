"""One row of conversation data, in the forms that users have, as a Conversation.

InternVL: `{video|image, clip?: [start_s, end_s], conversations: [{from: human|gpt|system, value}]}`, placeholder
`<video>` or `<image>`, put before the first turn when missing. LLaVA-NeXT: the same with `<image>` for a video too.
ms-swift, LLaMA-Factory: `{messages: [{role, content}], videos: [path or list of frame paths], images: [path]}`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from liteframe.data.manifest import VideoEntry, entry_of_row
from liteframe.models.vlm.chat import IMAGE, PLACEHOLDER, Turn
from liteframe.models.vlm.family import CONTROL_TOKENS


@dataclass(frozen=True)
class MediaItem:
    """One thing that is shown.

    Attributes:
        kind: "video" (a file), "frames" (a video as image files), or "image".
        files: the video, the frames in order, or the image.
        entry: of a video: the part to show, and its reader.
    """

    kind: str
    files: tuple[str, ...]
    entry: VideoEntry | None = None

    def identity(self) -> list[Any]:
        """What makes it another one, for digests; moving a data set changes nothing."""
        span = [] if self.entry is None else [self.entry.start, self.entry.end]
        return [self.kind, *map(os.path.basename, self.files), *span]


@dataclass(frozen=True)
class Conversation:
    """What is shown, and the turns about it, which hold a placeholder for each medium in the same order."""

    media: tuple[MediaItem, ...]
    turns: tuple[Turn, ...]


ROLES = {
    "human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant",
}  # fmt: skip
Locate = Callable[[Any, str], str]


def parse_conversation(row: dict[str, Any], where: str, locate: Locate) -> Conversation:
    """A row as a Conversation.

    Args:
        row: as above.
        where: file and line, for messages.
        locate: makes a path of the row absolute, or raises ValueError; called with the path and a name for it.

    Raises:
        ValueError: the row cannot be learned from; the message starts with `where`.
    """
    turns = parse_turns(row, where)
    videos, images = _named(row, "video", where), _named(row, "image", where)
    shown = iter(_in_order(turns, [_video(v, row, where, locate) for v in videos], _images(images, where, locate)))
    return Conversation(tuple(shown), turns)


def parse_turns(row: dict[str, Any], where: str) -> tuple[Turn, ...]:
    """The turns of a row, with one placeholder for each video and image of it; paths are not looked at.

    Raises:
        ValueError: see parse_conversation.
    """
    turns = _turns(row, where)
    first = 1 if turns[0].role == "system" else 0
    _check_roles(turns, first, where)
    counts = {PLACEHOLDER: len(_named(row, "video", where)), IMAGE: len(_named(row, "image", where))}
    found = {token: sum(turn.text.count(token) for turn in turns) for token in counts}
    if counts[IMAGE] == 0 and found[PLACEHOLDER] == 0 and found[IMAGE] == counts[PLACEHOLDER] > 0:
        # LLaVA writes <image> for a video.
        turns = [Turn(turn.role, turn.text.replace(IMAGE, PLACEHOLDER)) for turn in turns]
    elif not any(found.values()) and any(counts.values()):
        before = "".join(f"{token}\n" * count for token, count in counts.items())
        turns[first] = Turn("user", before + turns[first].text)
    elif found != counts:
        raise ValueError(
            f"{where}: the text holds {found[PLACEHOLDER]} {PLACEHOLDER} and {found[IMAGE]} {IMAGE}, but the row names "
            f"{counts[PLACEHOLDER]} videos and {counts[IMAGE]} images; write one placeholder for each"
        )
    for turn in turns:
        if turn.role != "user" and (PLACEHOLDER in turn.text or IMAGE in turn.text):
            raise ValueError(f"{where}: a {turn.role} turn holds a placeholder; only the user shows something")
    return tuple(turns)


def _turns(row: dict[str, Any], where: str) -> list[Turn]:
    keys = [key for key in ("conversations", "messages") if row.get(key) is not None]
    if len(keys) != 1:
        raise ValueError(f"{where}: a row has either 'conversations' or 'messages', this one has {keys or 'neither'}")
    messages = row[keys[0]]
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where}: {keys[0]!r} must be a list of turns, got {messages!r}")
    speaker, text = ("from", "value") if keys[0] == "conversations" else ("role", "content")
    return [_turn(message, speaker, text, f"{where}: turn {i}") for i, message in enumerate(messages, 1)]


def _turn(message: Any, speaker: str, key: str, where: str) -> Turn:
    if not isinstance(message, dict) or message.get(speaker) not in ROLES:
        raise ValueError(f"{where}: {speaker!r} must be one of {', '.join(ROLES)}, got {message!r}")
    text = message.get(key)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: {key!r} must be a text that is not empty, got {text!r}")
    for token in CONTROL_TOKENS:
        if token in text:
            raise ValueError(
                f"{where}: the text holds {token!r}, which is a control token; placeholders are {PLACEHOLDER}, {IMAGE}"
            )
    return Turn(ROLES[message[speaker]], text.strip())


def _check_roles(turns: list[Turn], first: int, where: str) -> None:
    roles = [turn.role for turn in turns]
    for i, role in enumerate(roles[first:]):
        if role != ("user", "assistant")[i % 2]:
            raise ValueError(f"{where}: turns are {roles}; user and assistant must alternate, the user first")
    if roles[-1] != "assistant":
        raise ValueError(f"{where}: the last turn is not the assistant's; a conversation ends with an answer")


def _named(row: dict[str, Any], kind: str, where: str) -> list[Any]:
    """What `video` and `videos` (or `image` and `images`) of a row name."""
    found: list[Any] = []
    for key in (kind, f"{kind}s"):
        value = row.get(key)
        if value is None:
            continue
        if key == kind and isinstance(value, str):
            found.append(value)
        elif isinstance(value, list):
            found += value
        else:
            raise ValueError(f"{where}: {key!r} is {value!r}; it must be a path or a list of paths")
    return found


def _video(value: Any, row: dict[str, Any], where: str, locate: Locate) -> MediaItem:
    if isinstance(value, list):
        if not value:
            raise ValueError(f"{where}: 'videos' holds an empty list of frames")
        return MediaItem("frames", tuple(locate(frame, f"{where}: a frame") for frame in value))
    path = locate(value, f"{where}: 'video'")
    return MediaItem("video", (path,), entry_of_row({**row, **_span(row, where)}, path, where))


def _span(row: dict[str, Any], where: str) -> dict[str, Any]:
    clip = row.get("clip")
    if clip is None:
        return {}
    if not isinstance(clip, list) or len(clip) != 2 or row.get("start") is not None or row.get("end") is not None:
        raise ValueError(f"{where}: 'clip' is {clip!r}; it must be [start, end] in seconds, without 'start' and 'end'")
    return {"start": clip[0], "end": clip[1]}


def _images(values: list[Any], where: str, locate: Locate) -> list[MediaItem]:
    return [MediaItem("image", (locate(value, f"{where}: 'image'"),)) for value in values]


def _in_order(turns: tuple[Turn, ...], videos: list[MediaItem], images: list[MediaItem]) -> Iterator[MediaItem]:
    """Videos and images in the order of their placeholders."""
    waiting = {PLACEHOLDER: iter(videos), IMAGE: iter(images)}
    for turn in turns:
        for token in turn.placeholders():
            yield next(waiting[token])
