"""Conversations about videos as a map-style dataset: frame budget and rate are drawn for each sample from its key."""

from collections.abc import Container, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from liteframe.data.chat import IGNORE, Conversation, encode_conversation
from liteframe.data.clips import decode_size
from liteframe.data.decode_process import DecodeProcess
from liteframe.data.frame_sampling import at_fps
from liteframe.data.processor import LiteFrameProcessor
from liteframe.data.sampler import Key
from liteframe.data.video_types import VideoError

FramesKey = tuple[str, tuple[int, ...]]


class VideoFacts(NamedTuple):
    """Number of frames, frames per second, and pixels of a video."""

    frames: int
    fps: float
    height: int
    width: int


class Sample(NamedTuple):
    """One conversation.

    Attributes:
        input_ids: [L].
        labels: [L], -100 where nothing is learned.
        pixels: float32 [T,3,H,W], or None where the features of these frames are known already.
        frames: which frames of which file.
        key: (epoch, index).
    """

    input_ids: list[int]
    labels: list[int]
    pixels: Tensor | None
    frames: FramesKey
    key: Key


class ChatBatch(NamedTuple):
    """Conversations whose video could be read, and a record of each whose video could not.

    Attributes:
        input_ids: [B,L], padded on the right; B may be 0 (then L is 0 too).
        attention_mask: [B,L].
        labels: [B,L], -100 where nothing is learned.
        pixels: float32 [sum of T,3,H,W] of the videos whose features are not known.
        video_frames: T of each of these.
        frames: B keys; those of unknown features in the order of `pixels`.
        known: B flags, True where features are known.
        keys: B keys (epoch, index).
        failures: path, kind, reason and remedy of each video that could not be read.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    pixels: Tensor
    video_frames: list[int]
    frames: list[FramesKey]
    known: list[bool]
    keys: list[Key]
    failures: list[dict[str, str]]


class ConversationDataset(Dataset["Sample | VideoError"]):
    """`dataset[(epoch, index)]` is conversation `index`, its frames drawn by (seed, epoch, index) alone.

    A video that cannot be read comes back as the `VideoError` itself, never as another video.

    Args:
        conversations: what to learn.
        processor: of the Video LLM.
        budgets: numbers of frames, one of which is drawn as the most a sample may have.
        fps: range of the frame rate that is drawn; a video too long for it gets its budget, spread evenly.
        seed: of the draws.
        deadline: seconds that reading one file may take.
        known: keys of frames whose features need not be computed again; their files are not read.
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
        known: Container[FramesKey] = (),
    ):
        self.conversations = list(conversations)
        self.entries = [conversation.entry for conversation in self.conversations]
        self.processor, self.budgets, self.fps, self.seed, self.known = processor, list(budgets), fps, seed, known
        self.size = processor.frame_size
        self.decoder = DecodeProcess(deadline)
        self._infos: dict[int, VideoFacts] = {}

    def __len__(self) -> int:
        """Number of conversations."""
        return len(self.conversations)

    def __getitem__(self, key: Key) -> Sample | VideoError:
        """The sample of `key` = (epoch, index), or the reason why there is none."""
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        budget, fps = int(rng.choice(self.budgets)), float(rng.uniform(*self.fps))
        try:
            return self._sample(key, budget, fps)
        except VideoError as error:
            return error

    def _sample(self, place: Key, budget: int, fps: float) -> Sample:
        _, index = place
        entry, info = self.entries[index], self._info(index)
        try:
            indices = at_fps(
                info.frames, info.fps, target_fps=fps, max_frames=budget, start=entry.start or 0.0, end=entry.end
            )
        except ValueError as error:
            remedy = "correct start and end of the row"
            raise VideoError(entry.video, "index", str(error), remedy) from error
        key = (entry.video, tuple(indices))
        pixels = None
        if key not in self.known:
            size = decode_size(info.height, info.width, self.size)
            pixels = self.processor.pixels(self.decoder.read(entry.video, indices, reader=entry.reader, size=size))
        video = self.processor.slot_prompt(len(indices), *self.size)
        ids, labels = encode_conversation(self.conversations[index].turns, video, self.processor.tokenizer)
        return Sample(ids, labels, pixels, key, place)

    def _info(self, index: int) -> VideoFacts:
        """Length, rate and size of the video, probed once where the row does not tell."""
        if index not in self._infos:
            entry = self.entries[index]
            told = (entry.frames, entry.fps, entry.height, entry.width)
            if None in told:
                info = self.decoder.probe(entry.video)
                told = (info.frames, info.fps, info.height, info.width)
            self._infos[index] = VideoFacts(*told)  # type: ignore[arg-type]  # none is None here
        return self._infos[index]


def collate_samples(items: Sequence[Sample | VideoError], pad_token_id: int) -> ChatBatch:
    """A batch of the conversations whose video could be read; failures travel beside them."""
    samples = [item for item in items if isinstance(item, Sample)]
    length = max((len(sample.input_ids) for sample in samples), default=0)
    ids = torch.full((len(samples), length), pad_token_id)
    labels = torch.full((len(samples), length), IGNORE)
    mask = torch.zeros((len(samples), length), dtype=torch.long)
    for row, sample in enumerate(samples):
        count = len(sample.input_ids)
        ids[row, :count] = torch.tensor(sample.input_ids)
        labels[row, :count] = torch.tensor(sample.labels)
        mask[row, :count] = 1
    videos = [sample.pixels for sample in samples if sample.pixels is not None]
    return ChatBatch(
        input_ids=ids,
        attention_mask=mask,
        labels=labels,
        pixels=torch.cat(videos) if videos else torch.empty(0),
        video_frames=[len(video) for video in videos],
        frames=[sample.frames for sample in samples],
        known=[sample.pixels is None for sample in samples],
        keys=[sample.key for sample in samples],
        failures=[item.to_dict() for item in items if isinstance(item, VideoError)],
    )
