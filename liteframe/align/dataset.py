"""Conversations as a map-style dataset: frame budget and rate are drawn for each sample from its key."""

from collections.abc import Container, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from liteframe.align.conversation_rows import Conversation, MediaItem
from liteframe.data.manifest import VideoEntry
from liteframe.data.preprocess import decode_size
from liteframe.data.stream import Key
from liteframe.data.video.errors import VideoError
from liteframe.data.video.process import DecodeProcess
from liteframe.data.video.sampling import choose_frames, uniform
from liteframe.data.video.timeline import Timeline
from liteframe.models.vlm.chat import Turn, encode_conversation
from liteframe.models.vlm.processor import LiteFrameProcessor, Shown
from liteframe.pictures import PictureError, read_picture

MediaKey = tuple[str, tuple[int, ...]]  # file, and which of its frames
CHARACTERS_PER_TOKEN = 4  # of English text, roughly


class LoadedMedia(NamedTuple):
    """One video or image, read.

    Attributes:
        pixels: uint8 [T,3,h,w], or None where the features of these frames are cached.
        key: which frames of which file.
        shown: what stands for it in the prompt.
    """

    pixels: Tensor | None
    key: MediaKey
    shown: Shown


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
    """

    input_ids: list[int]
    labels: list[int]
    media: list[LoadedMedia]
    key: Key
    position_ids: Tensor | None = None
    rejected: Row | None = None
    mode: str | None = None


def draw(seed: int, key: Key, budgets: Sequence[int], fps: tuple[float, float]) -> tuple[int, float]:
    """The most frames that a sample may have, and its frame rate, by (seed, epoch, index) alone."""
    rng = np.random.default_rng([seed, *key])
    return int(rng.choice(list(budgets))), float(rng.uniform(*fps))


class ConversationDataset(Dataset["Sample | VideoError"]):
    """`dataset[(epoch, index)]` is conversation `index`, its frames drawn by (seed, epoch, index) alone.

    A conversation with a video or image that cannot be read comes back as the `VideoError` itself, never as another.

    Args:
        conversations: what to learn.
        processor: of the Video LLM.
        budgets: numbers of frames, one of which is drawn as the most a sample may have; several videos share it.
        fps: range of the frame rate that is drawn; a video too long for it gets its budget, spread evenly over its
            time, and a list of pictures, which has no times, spread evenly by number.
        seed: of the draws.
        deadline: seconds that reading one file may take.
        cached: keys of frames whose features need not be computed again; their files are not read.
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
    ):
        self.conversations = list(conversations)
        self.processor, self.budgets, self.fps, self.seed, self.cached = processor, list(budgets), fps, seed, cached
        self._shapes: dict[str, tuple[int, int]] = {}  # of pictures that were read
        self.decoder = DecodeProcess(deadline)
        self._facts: dict[str, VideoEntry] = {}

    def __len__(self) -> int:
        """Number of conversations."""
        return len(self.conversations)

    def __getitem__(self, key: Key) -> Sample | VideoError:
        """The sample of `key` = (epoch, index), or the reason why there is none."""
        conversation = self.conversations[key[1]]
        budget, fps = draw(self.seed, key, self.budgets, self.fps)
        budget = max(1, budget // max(1, sum(medium.kind != "image" for medium in conversation.media)))
        try:
            media = [self._load(medium, budget, fps) for medium in conversation.media]
        except VideoError as error:
            return error
        shown = [medium.shown for medium in media]
        row, *others = (self._row(turns, shown) for turns in conversation.versions)
        return Sample(row.input_ids, row.labels, media, key, row.position_ids, others[0] if others else None)

    def length(self, key: Key) -> float:
        """About how many tokens a sample has, without opening a file: its whole budgets, and its text."""
        conversation = self.conversations[key[1]]
        frames, _ = draw(self.seed, key, self.budgets, self.fps)
        slots = sum(medium.kind == "image" for medium in conversation.media)
        if slots < len(conversation.media):
            slots += frames // self.processor.frames_per_slot
        text = max(sum(len(turn.text) for turn in turns) for turns in conversation.versions)
        return slots * self.processor.tokens_per_slot(*self.processor.frame_size) + text / CHARACTERS_PER_TOKEN

    def _row(self, turns: Sequence[Turn], shown: Sequence[Shown]) -> Row:
        ids, labels = encode_conversation(turns, [one.text for one in shown], self.processor.tokenizer)
        told = self.processor.mrope is not None
        return Row(ids, labels, self.processor.position_ids(torch.tensor(ids), shown) if told else None)

    def _load(self, medium: MediaItem, budget: int, fps: float) -> LoadedMedia:
        if medium.kind == "image":
            key: MediaKey = (medium.files[0], ())
            pixels = None if key in self.cached else self._picture(medium.files[0])
            return LoadedMedia(pixels, key, self.processor.shown_image(*self._shapes[medium.files[0]]))
        seconds = None
        if medium.entry is None:
            count = len(medium.files)
            chosen = list(range(count)) if count <= budget else uniform(count, budget)
            key = ("|".join(medium.files), tuple(chosen))
            files = tuple(medium.files[i] for i in chosen)
            pixels = None if key in self.cached else self._pictures(files)
            size = self._shapes[files[0]]
        else:
            chosen = self._indices(medium.entry, budget, fps)
            key = (medium.entry.video, tuple(chosen))
            timeline = self._measured(medium.entry)[0]
            seconds = [timeline.time(index) for index in chosen]
            size = self._size(medium.entry)
            pixels = None if key in self.cached else self._decoded(medium.entry, chosen, size)
        return LoadedMedia(pixels, key, self.processor.shown_video(len(chosen), *size, seconds))

    def _picture(self, path: str) -> Tensor:
        """An image as a video of one frame, uint8 [1,3,h,w]; sizes of files may differ."""
        try:
            picture = self.processor.resized(read_picture(path)[None])
        except PictureError as error:
            raise VideoError(path, error.kind, error.reason, error.remedy) from error
        except ValueError as error:
            raise VideoError(path, "shape", str(error)) from error
        self._shapes[path] = (picture.shape[2], picture.shape[3])
        return picture

    def _pictures(self, paths: Sequence[str]) -> Tensor:
        """A video whose frames are pictures of one shape, uint8 [T,3,h,w]."""
        pictures = [self._picture(path) for path in paths]
        for path, picture in zip(paths, pictures, strict=True):
            if picture.shape != pictures[0].shape:
                first, other = (f"{p.shape[2]}x{p.shape[3]}" for p in (pictures[0], picture))
                reason = f"is a frame of {other} pixels after resizing, and the first of its video one of {first}"
                raise VideoError(path, "shape", reason, "give pictures of one shape as one video")
        return torch.cat(pictures)

    def _indices(self, entry: VideoEntry, budget: int, fps: float) -> list[int]:
        timeline = self._measured(entry)[0]
        try:
            return choose_frames(timeline, frames=budget, target_fps=fps, start=entry.start, end=entry.end)
        except ValueError as error:
            remedy = "correct start and end of the row"
            raise VideoError(entry.video, "index", str(error), remedy) from error

    def _size(self, entry: VideoEntry) -> tuple[int, int]:
        _, height, width = self._measured(entry)
        try:
            return self.processor.size_of(height, width)
        except ValueError as error:
            raise VideoError(entry.video, "shape", str(error)) from error

    def _decoded(self, entry: VideoEntry, indices: list[int], size: tuple[int, int]) -> Tensor:
        _, height, width = self._measured(entry)
        reader, shrunk = self._facts[entry.video].reader, decode_size(height, width, size)
        return self.processor.resized(self.decoder.read(entry.video, indices, reader=reader, size=shrunk), size)

    def _measured(self, entry: VideoEntry) -> tuple[Timeline, int, int]:
        """Timeline, height and width; a file of which the row does not tell them all is looked through."""
        facts = self._facts.setdefault(entry.video, entry)
        timeline, height, width = facts.timeline, facts.height, facts.width
        if timeline is None or height is None or width is None:
            info = self.decoder.probe(entry.video)
            self._facts[entry.video] = facts.with_facts(info)
            return info.timeline, info.height, info.width
        return timeline, height, width
