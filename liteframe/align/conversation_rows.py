"""One row of conversation data, in the forms that users have, as a Conversation.

InternVL: `{video|image, clip?: [start_s, end_s], conversations: [{from: human|gpt|system, value}]}`, placeholder
`<video>` or `<image>`, put before the first turn when missing. LLaVA-NeXT: the same with `<image>` for a video too.
ms-swift, LLaMA-Factory: `{messages: [{role, content}], videos: [path or list of frame paths], images: [path]}`. In
each, `system` or `system_prompt`, and in an answer `loss` (`weight`, `train`, ...), which is 0 where it is not learned.
`span: [start_s, end_s]`, where the answer is to be seen, is read for memories that learn from it, and by no other run.

What the trainers of these formats act on is read or refused; other keys are metadata, which `unread_keys` names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from liteframe.data.manifest import FIELDS, VideoEntry, entry_of_row
from liteframe.models.vlm.chat import IMAGE, PLACEHOLDER, Turn, is_whole
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
    """What is shown, and the turns about it, which hold a placeholder for each medium in the same order.

    Attributes:
        media: what is shown.
        turns: what is said.
        rejected: of a preference pair, what the last answer should not be; see liteframe.align.pair_rows.
        span: as the row has it, where the answer is to be seen; for who learns from it.
    """

    media: tuple[MediaItem, ...]
    turns: tuple[Turn, ...]
    rejected: str | None = None
    span: Any = None

    @property
    def videos(self) -> int:
        """How many videos there are, which share a budget of frames."""
        return sum(medium.kind != "image" for medium in self.media)

    @property
    def versions(self) -> list[tuple[Turn, ...]]:
        """The turns, and of a pair below them those with the rejected answer."""
        if self.rejected is None:
            return [self.turns]
        return [self.turns, (*self.turns[:-1], replace(self.turns[-1], text=self.rejected))]


SYSTEM = ("system", "system_prompt")
SPANS: tuple[tuple[str, ...], ...] = (("clip",), ("start", "end"), ("video_start", "video_end"))  # the last are Qwen's
READ = {"conversations", "messages", "video", "videos", "image", "images", *SYSTEM, *(key for s in SPANS for key in s)}
# What `liteframe scan` writes of a file; without `breaks` these are another tool's, which may mean something else.
FACTS = {"breaks", *FIELDS} - READ
LEARNED = ("loss", "loss_scale", "loss_weight", "weight", "train", "training")
HARMLESS = {"id", "length"}  # the number of tokens, in InternVL's lists
READ_OF_TURN = {"from", "value", "role", "content", *LEARNED}


def _by_key(reasons: dict[str, str]) -> dict[str, str]:
    return {key: reason for keys, reason in reasons.items() for key in keys.split()}


# Keys that the trainer of a format acts on and this one does not; what is empty asks for nothing.
REFUSED = _by_key({
    "audio audios ref_audios": "sound is not heard",
    "tools functions": "tools are not called",
    "objects": "boxes are not put into the text",
    "chosen rejected rejected_response rejected_messages rejected_images rejected_videos positive_messages "
    "negative_messages kto_tag": "every answer of a row is learned, and no preference (see `liteframe prefer`)",
    "nframes min_frames max_frames min_pixels max_pixels total_pixels resized_height resized_width":
        "data.frames and data.fps say what is shown of a video",
    "chat_template_kwargs mm_processor_kwargs": "prompts have no options; `liteframe preview` shows them",
})  # fmt: skip
REFUSED_OF_TURN = _by_key({
    "tool_calls tool_call_id function_call": "tools are not called",
    "reasoning reasoning_content thinking": "thoughts are not put before an answer",
    "image images video videos audio audios": "videos and images are named in the row, beside its turns",
    "train_detail training_detail": "an answer is learned as a whole or not at all",
})  # fmt: skip
# Where other tools put pictures and sound, and other models' control tokens: <|...|> but those of grounding.
FOREIGN = re.compile(
    r"""<(?:
        [|\uff5c] (?!(?:object_ref|box|quad|point)_(?:start|end)\|>) [^\s<>]{1,40} [|\uff5c]
        | (?:image|img|video|vid|audio|speech) (?:[ _-]?\d+ | _soft_token | [_-]?(?:pad|token|placeholder|here))
        | (?:im|vi|vid|image|img|video|audio) _ (?:start|end|patch|newline|break|context)
        | (?:start|end) _of_ (?:image|video|audio|turn)
        | image | video | audio | speech | bbox | ref-object | cot-process | start-image
        | fake_token_around_image | global-img | row_\d+_col_\d+
    )> | \[IMG(?:_BREAK|_END)?\]""",
    re.VERBOSE | re.IGNORECASE,
)
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
    if any(row.get(key) is not None for span in SPANS for key in span) and not any(isinstance(v, str) for v in videos):
        raise ValueError(f"{where}: the row has a span of seconds and no video file of which it could be a part")
    shown = iter(_in_order(turns, [_video(v, row, where, locate) for v in videos], _images(images, where, locate)))
    return Conversation(tuple(shown), turns, span=row.get("span"))


def parse_turns(row: dict[str, Any], where: str) -> tuple[Turn, ...]:
    """The turns of a row, with one placeholder for each video and image of it; paths are not looked at.

    Raises:
        ValueError: see parse_conversation.
    """
    _refuse(row, REFUSED, where)
    turns = _turns(row, where)
    first = 1 if turns[0].role == "system" else 0
    _check_roles(turns, first, where)
    counts = {PLACEHOLDER: len(_named(row, "video", where)), IMAGE: len(_named(row, "image", where))}
    found = {token: sum(turn.text.count(token) for turn in turns) for token in counts}
    if counts[IMAGE] == 0 and found[PLACEHOLDER] == 0 and found[IMAGE] == counts[PLACEHOLDER] > 0:
        # LLaVA writes <image> for a video.
        turns = [replace(turn, text=turn.text.replace(IMAGE, PLACEHOLDER)) for turn in turns]
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
    turns = [_turn(message, speaker, text, f"{where}: turn {i}") for i, message in enumerate(messages, 1)]
    for key in SYSTEM:
        if row.get(key) not in (None, ""):
            system = Turn("system", checked_text(row[key], f"{where}: {key!r}"))
            if turns[0].role != "system":
                turns.insert(0, system)
            elif turns[0] != system:
                raise ValueError(f"{where}: {key!r} is {system.text!r}, but the row begins with {turns[0].text!r}")
    return turns


def _turn(message: Any, speaker: str, key: str, where: str) -> Turn:
    if not isinstance(message, dict) or message.get(speaker) not in ROLES:
        raise ValueError(f"{where}: {speaker!r} must be one of {', '.join(ROLES)}, got {message!r}")
    _refuse(message, REFUSED_OF_TURN, where)
    role = ROLES[message[speaker]]
    return Turn(role, checked_text(message.get(key), f"{where}: {key!r}"), _learned(message, role, where))


def checked_text(text: Any, what: str) -> str:
    """What is said in a turn, without white space around it.

    Raises:
        ValueError: it is no text, empty, or holds a token of control; the message starts with `what`.
    """
    if isinstance(text, list):
        raise ValueError(
            f"{what} is a list of parts; write one text with {PLACEHOLDER} and {IMAGE} in it, and name the files in "
            "'videos' and 'images' of the row"
        )
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{what} must be a text that is not empty, got {text!r}")
    if not is_whole(text):
        raise ValueError(f"{what} holds half of a character: {text!r}")
    for token in CONTROL_TOKENS:
        if token in text:
            raise ValueError(
                f"{what} holds {token!r}, which is a control token; placeholders are {PLACEHOLDER}, {IMAGE}"
            )
    for found in FOREIGN.finditer(text):
        if found.group() not in (PLACEHOLDER, IMAGE):
            raise ValueError(
                f"{what} holds {found.group()!r}, a placeholder or control token of another tool, which would be "
                f"learned as words; placeholders are {PLACEHOLDER}, {IMAGE}"
            )
    return text.strip()


def _learned(message: dict[str, Any], role: str, where: str) -> bool:
    """Whether a turn is learned, by whichever key says so."""
    given = {key: message[key] for key in LEARNED if message.get(key) is not None}
    for key, value in given.items():
        if value not in (0, 1) or (value and role != "assistant"):
            rule = "an answer is learned (1, true) or not (0, false), other turns never are"
            raise ValueError(f"{where}: {key!r} is {value!r}; {rule}")
    if len({bool(value) for value in given.values()}) > 1:
        raise ValueError(f"{where}: {given} contradict each other")
    return all(given.values())


def _refuse(held: dict[str, Any], reasons: dict[str, str], where: str) -> None:
    """Refuse keys that another trainer would act on."""
    for key in held.keys() & reasons.keys():
        value = held[key]
        inner = value.values() if isinstance(value, dict) else value
        if value not in (None, "", "[]") and not (isinstance(value, list | dict) and not any(inner)):
            raise ValueError(f"{where}: {key!r} is {value!r:.80}, and {reasons[key]} here; remove the key, or the row")


def unread_keys(row: dict[str, Any]) -> set[str]:
    """Keys of a row that are passed over; those of its turns as `key of a turn`."""
    turns = row.get("conversations") or row.get("messages") or ()
    of_turns = set().union(*turns) - READ_OF_TURN - REFUSED_OF_TURN.keys()
    facts = set() if row.get("breaks") is None else FACTS
    return row.keys() - READ - HARMLESS - facts - REFUSED.keys() | {f"{key} of a turn" for key in of_turns}


def _check_roles(turns: list[Turn], first: int, where: str) -> None:
    roles = [turn.role for turn in turns]
    for i, role in enumerate(roles[first:]):
        if role != ("user", "assistant")[i % 2]:
            raise ValueError(f"{where}: turns are {roles}; user and assistant must alternate, the user first")
    if roles[-1] != "assistant":
        raise ValueError(f"{where}: the last turn is not the assistant's; a conversation ends with an answer")
    if not any(turn.learned for turn in turns if turn.role == "assistant"):
        raise ValueError(f"{where}: no answer is to be learned; remove the row")


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
    facts = {} if row.get("breaks") is None else row
    start, end = _span(row, where)
    return MediaItem("video", (path,), entry_of_row({**facts, "start": start, "end": end}, path, where))


def _span(row: dict[str, Any], where: str) -> tuple[Any, Any]:
    """Start and end in seconds, in whichever form."""
    given = [span for span in SPANS if any(row.get(key) is not None for key in span)]
    if len(given) > 1:
        forms = " and as ".join(map(" to ".join, given))
        raise ValueError(f"{where}: the row has a span of seconds as {forms}; keep one of them")
    if not given:
        return None, None
    if given[0] != ("clip",):
        return row.get(given[0][0]), row.get(given[0][1])
    clip = row["clip"]
    if not isinstance(clip, list) or len(clip) != 2:
        raise ValueError(f"{where}: 'clip' is {clip!r}; it must be [start, end] in seconds")
    return clip[0], clip[1]


def _images(values: list[Any], where: str, locate: Locate) -> list[MediaItem]:
    return [MediaItem("image", (locate(value, f"{where}: 'image'"),)) for value in values]


def _in_order(turns: tuple[Turn, ...], videos: list[MediaItem], images: list[MediaItem]) -> Iterator[MediaItem]:
    """Videos and images in the order of their placeholders."""
    waiting = {PLACEHOLDER: iter(videos), IMAGE: iter(images)}
    for turn in turns:
        for token in turn.placeholders():
            yield next(waiting[token])
