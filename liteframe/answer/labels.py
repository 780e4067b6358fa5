"""What stands for a video in a prompt: a line a slot, which is a label and the slot's tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from liteframe.answer.frame_encoder import FrameEncoder
from liteframe.answer.positions import original_positions
from liteframe.models.vlm.chat import IMAGE, PLACEHOLDER, question_prompt
from liteframe.models.vlm.family import CONTROL_TOKENS
from liteframe.models.vlm.mrope import Mrope
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
        labels: "frames" writes what the family was trained on: numbers of frames, times, or nothing; "seconds" the
            times of the first and the last frame of a slot (Apollo, arXiv 2412.10360); "none" nothing.
        mrope: how vision tokens are numbered, where not as the encoder's family says.

    Raises:
        ValueError: there are no such labels.
    """

    def __init__(self, encoder: FrameEncoder, tokenizer: Any, labels: str, mrope: Mrope | None = None) -> None:
        if labels not in LABELS:
            raise ValueError(f"labels={labels!r}: expected one of {', '.join(LABELS)}")
        self.encoder, self.labels, self.tokenizer = encoder, labels, tokenizer
        self.mrope = mrope or encoder.mrope
        self._placeholder: str = tokenizer.convert_ids_to_tokens(encoder.placeholder_id)
        self.end = "" if encoder.end_embedding() is None else self._placeholder

    def text(self, shown: Tokens) -> str:
        """The whole video, and the placeholder of what ends it."""
        if self._in_one(shown):
            return self.encoder.video_text(shown.slots, shown.times)
        return "".join(self.line(shown, number, number == 0) for number in range(len(shown.slots))) + self.end

    def closing(self, shown: Tokens | None = None) -> str:
        """What of `text` would come later, were there more slots; None: of slots that do not overlap."""
        in_one = self.labels == "frames" if shown is None else self._in_one(shown)
        return self.end or (self.encoder.closing if in_one else "")

    def position_ids(self, ids: Sequence[int], shown: Tokens | None) -> Tensor | None:
        """Positions [3,1,L] of a prompt, or of its beginning up to where a slot ends; None: they are counted.

        Args:
            ids: tokens of the prompt.
            shown: what is shown of the video in it.

        Raises:
            ValueError: the tokens' grid is not known.
        """
        places = None if shown is None else self.places(shown)
        if self.mrope is None or places is None:
            return None
        vision = torch.tensor(list(ids)) == self.encoder.placeholder_id
        return self.mrope.position_ids(vision, places)[:, None]

    def places(self, shown: Tokens) -> Tensor | None:
        """Where the tokens lie on three axes, see Mrope.places; None where positions have one.

        Raises:
            ValueError: the tokens' grid is not known.
        """
        if self.mrope is None:
            return None
        if shown.shape is None:
            raise ValueError("positions on three axes need the grid of the tokens, which nobody tells")
        return self.mrope.places(shown.slots, shown.shape, shown.times, shown.place.cpu())

    def _in_one(self, shown: Tokens) -> bool:
        return self.labels == "frames" and not _overlap(shown)

    def alone(self, slot: Tokens, first: bool) -> tuple[str, str]:
        """What opens a video, ahead of its first slot, and the line of a slot: joined, and closed, they are `text`."""
        if self.labels != "frames":
            return "", self.line(slot, 0, first)
        own = self.encoder.video_text(slot.slots, slot.times)
        if closing := self.encoder.closing:
            opening = own.partition(self._placeholder)[0]
            return opening if first else "", own.removeprefix(opening).removesuffix(closing)
        own = own.removesuffix(self.end)
        times = None if slot.times is None else [*slot.times] * 2
        twice = self.encoder.video_text([*slot.slots] * 2, times).removesuffix(self.end)
        return "", ("" if first else twice[len(own) : -len(own)]) + own

    def line(self, shown: Tokens, number: int, first: bool) -> str:
        """That of one slot of those that are shown, with what parts it from the line before unless it is the first."""
        slot = shown.slots[number]
        times = None if shown.times is None else [shown.times[number]]
        family = self.encoder.video_text([slot], times).removesuffix(self.end)
        begin = match.start() if (match := _BODY.search(family)) else len(family)
        label, body = family[:begin], family[begin:]
        parted = bool(label)
        if self.labels == "none":
            label = ""
        elif self.labels == "seconds" or (label and _overlap(shown)):
            label, parted = self._own(shown, number), True
        return ("\n" if parted and not first else "") + label + body

    def original_places(
        self, shown: Tokens, among: tuple[int, int] | None, ids: list[int], question: str, system: str | None
    ) -> list[int]:
        """Positions of the tokens of a prompt in that which shows all frames with all of their tokens.

        Args:
            shown: what a reducer has left of a video.
            among: see Tokens.
            ids: tokens of the prompt about it.
            question: of the prompt.
            system: its system message, if it has one.

        Raises:
            ValueError: nothing was reduced, or tokens have no place in a frame of their own.
        """
        if among is None:
            raise ValueError("original positions are of what a reducer has left, and nothing was reduced")
        if any(first != last for first, last, _ in shown.slots) or (shown.place < 0).any():
            raise ValueError("original positions: this reducer leaves tokens of several frames, or without a place")
        frames, per_frame = among
        head, tail = question_prompt(question, system).split(PLACEHOLDER)
        text = head + self.encoder.video_text([(frame, frame, per_frame) for frame in range(frames)]) + tail
        whole = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        numbers = (shown.frame * per_frame + shown.place).tolist() + [frames * per_frame] * bool(self.end)
        return original_positions(ids, whole, self.encoder.placeholder_id, numbers)

    def _own(self, shown: Tokens, number: int) -> str:
        if _overlap(shown):
            return f"Part {number + 1} of {len(shown.slots)}: "
        if shown.times is None:
            raise ValueError("labels='seconds' need the times of what is shown, which this memory does not tell")
        begin, end = shown.times[number]
        return f"{begin:.1f}-{end:.1f} s: "


def _overlap(shown: Tokens) -> bool:
    return any(after[0] <= before[1] for before, after in pairwise(shown.slots))
