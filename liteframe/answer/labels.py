"""What stands for a video in a prompt: a line a slot, which is a label and the slot's tokens."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from liteframe.answer.frame_encoder import FrameEncoder
from liteframe.models.vlm.chat import IMAGE, PLACEHOLDER
from liteframe.models.vlm.family import CONTROL_TOKENS
from liteframe.reduce.base import Tokens

LABELS = ("frames", "seconds", "none")
_BODY = re.compile("|".join(map(re.escape, (*CONTROL_TOKENS, PLACEHOLDER, IMAGE))))  # how what is no label begins


class VideoLines:
    """Writes the slots of a video.

    A label never claims frames that are not in its line: where slots overlap in time, since tokens of different frames
    were merged into each, they are parts of the video without numbers of frames.

    Args:
        encoder: how the model's family writes a slot.
        tokenizer: the model's.
        labels: "frames" writes what the family was trained on: numbers of frames, or nothing; "seconds" the times of
            the first and the last frame of a slot (Apollo, arXiv 2412.10360); "none" nothing.

    Raises:
        ValueError: there are no such labels.
    """

    def __init__(self, encoder: FrameEncoder, tokenizer: Any, labels: str) -> None:
        if labels not in LABELS:
            raise ValueError(f"labels={labels!r}: expected one of {', '.join(LABELS)}")
        self.encoder, self.labels = encoder, labels
        self.end = "" if encoder.end_embedding() is None else tokenizer.convert_ids_to_tokens(encoder.placeholder_id)

    def text(self, shown: Tokens) -> str:
        """The whole video, and the placeholder of what ends it."""
        if self.labels == "frames" and not _overlap(shown):
            return self.encoder.video_text(shown.slots)
        return "".join(self.line(shown, number, number == 0) for number in range(len(shown.slots))) + self.end

    def line(self, shown: Tokens, number: int, first: bool) -> str:
        """That of one slot of those that are shown, with what parts it from the line before unless it is the first."""
        slot = shown.slots[number]
        family = self.encoder.video_text([slot]).removesuffix(self.end)
        begin = match.start() if (match := _BODY.search(family)) else len(family)
        label, body = family[:begin], family[begin:]
        parted = bool(label)
        if self.labels == "none":
            label = ""
        elif self.labels == "seconds" or (label and _overlap(shown)):
            label, parted = self._own(shown, number), True
        return ("\n" if parted and not first else "") + label + body

    def _own(self, shown: Tokens, number: int) -> str:
        if _overlap(shown):
            return f"Part {number + 1} of {len(shown.slots)}: "
        if shown.times is None:
            raise ValueError("labels='seconds' need the times of what is shown, which this memory does not tell")
        begin, end = shown.times[number]
        return f"{begin:.1f}-{end:.1f} s: "


def _overlap(shown: Tokens) -> bool:
    return any(after[0] <= before[1] for before, after in pairwise(shown.slots))
