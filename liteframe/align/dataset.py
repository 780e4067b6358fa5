"""Conversations as a map-style dataset: what is shown of a video is drawn by the epoch and the video."""

import hashlib
import json
from collections.abc import Container, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from liteframe.align.conversation_rows import Conversation
from liteframe.align.media import Draws, LoadedMedia, MediaKey, MediaReader, MediaSource, expected
from liteframe.align.tokens.media_list import ListedMedium
from liteframe.data.stream import Key
from liteframe.data.video.errors import VideoError
from liteframe.models.vlm.chat import Turn, encode_conversation
from liteframe.models.vlm.modes import text_tokens
from liteframe.models.vlm.processor import LiteFrameProcessor, Shown, grid_slots

CHARACTERS_PER_TOKEN = 4  # of English text, roughly


class Row(NamedTuple):
    """What the language model reads of a conversation; fields as of Sample."""

    input_ids: list[int]
    labels: list[int]
    position_ids: Tensor | None


class Sample(NamedTuple):
    """One conversation.

    Attributes:
        input_ids: [L].
        labels: [L], -100 where nothing is learned.
        media: its videos and images, in the order of the text.
        key: (epoch, index).
        position_ids: [3,L], where the language model counts on three axes.
        rejected: of a preference pair, the same with the other answer.
        mode: of an elastic encoder, in which the media are shown.
        pair: of a preference pair, a digest of both rows and of the frames that they show.
    """

    input_ids: list[int]
    labels: list[int]
    media: list[LoadedMedia]
    key: Key
    position_ids: Tensor | None = None
    rejected: Row | None = None
    mode: str | None = None
    pair: str | None = None


class ConversationDataset(Dataset["Sample | VideoError"]):
    """`dataset[(epoch, index)]` is conversation `index`; what it shows of a video is drawn by seed, epoch and video.

    A conversation with a video or image that cannot be read comes back as the `VideoError` itself, never as another.

    Args:
        conversations: what to learn.
        processor: of the Video LLM.
        budgets: numbers of frames, one of which is drawn as the most that a video may have; where a conversation has
            several videos, each gets its part.
        fps: range of the frame rate that is drawn; a video too long for it gets its budget, spread evenly over its
            time, and a list of pictures, which has no times, spread evenly by number.
        seed: of the draws.
        deadline: seconds that reading one file may take.
        cached: keys of frames whose features need not be computed again; their files are not read.
        media: where videos and images come from, if not from their files.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        processor: LiteFrameProcessor,
        *,
        budgets: Sequence[int],
        fps: tuple[float, float],
        seed: int = 0,
        deadline: float = 30.0,
        cached: Container[MediaKey] = (),
        media: MediaSource | None = None,
    ):
        self.conversations, self.processor = list(conversations), processor
        draws = Draws(budgets, fps, seed)
        self.media = MediaReader(processor, draws, deadline, cached) if media is None else media

    def __len__(self) -> int:
        """Number of conversations."""
        return len(self.conversations)

    def __getitem__(self, key: Key) -> Sample | VideoError:
        """The sample of `key` = (epoch, index), or the reason why there is none."""
        conversation = self.conversations[key[1]]
        try:
            media = [self.media.load(key[0], medium, conversation.videos) for medium in conversation.media]
        except VideoError as error:
            return error
        shown = [medium.shown for medium in media]
        row, *others = (self._row(turns, shown) for turns in conversation.versions)
        if not others:
            return Sample(row.input_ids, row.labels, media, key, row.position_ids)
        pair = pair_digest(conversation, media, (row, *others))
        return Sample(row.input_ids, row.labels, media, key, row.position_ids, others[0], pair=pair)

    def length(self, key: Key) -> float:
        """About how many tokens a sample has, without opening a file: what a row does not tell of a video is guessed.

        Such a video is taken to be long enough for all the frames that it may have.
        """
        conversation, total = self.conversations[key[1]], 0.0
        for medium in conversation.media:
            drawn = self.media.drawn(key[0], medium, conversation.videos)
            frames, height, width = expected(self.processor, medium, *drawn)
            slots = self.processor.slots(frames, height, width)
            total += sum(slot.tokens for slot in slots) + len(slots) * self._label_tokens
        text = max(sum(len(turn.text) for turn in turns) for turns in conversation.versions)
        return total + text / CHARACTERS_PER_TOKEN

    @cached_property
    def _label_tokens(self) -> int:
        """Tokens of the text beside a slot's features."""
        lines = grid_slots(2 * self.processor.frames_per_slot, self.processor.frames_per_slot, 1)
        one, two = (text_tokens(self.processor, self.processor.video_text(lines[:count])) for count in (1, 2))
        return two - one - 1

    def _row(self, turns: Sequence[Turn], shown: Sequence[Shown]) -> Row:
        ids, labels = encode_conversation(turns, [one.text for one in shown], self.processor.tokenizer)
        told = self.processor.mrope is not None
        return Row(ids, labels, self.processor.position_ids(torch.tensor(ids), shown) if told else None)


def pair_digest(conversation: Conversation, media: Sequence[LoadedMedia], rows: Sequence[Row]) -> str:
    """What makes a pair another one for a model: its tokens, and which frames of which files they show.

    A file is told by its name and size, so that a data set may move.
    """
    files = [ListedMedium.of(medium, conversation.videos) for medium in conversation.media]
    shown = [[*file.names[:-1], file.bytes, one.key[1]] for file, one in zip(files, media, strict=True)]
    described = json.dumps([shown, [(row.input_ids, row.labels) for row in rows]])
    return hashlib.sha256(described.encode()).hexdigest()
