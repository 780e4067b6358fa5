"""Conversations as a map-style dataset: frame budget and rate are drawn for each sample from its key."""

from collections.abc import Container, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers.modeling_outputs import BaseModelOutputWithPooling

from liteframe.align.conversation_rows import Conversation
from liteframe.data.manifest import VideoEntry
from liteframe.data.media import Medium, read_image, read_images
from liteframe.data.preprocess import decode_size
from liteframe.data.stream import Key
from liteframe.data.video.errors import VideoError
from liteframe.data.video.process import DecodeProcess
from liteframe.data.video.sampling import choose_frames, uniform
from liteframe.models.vlm.base import VlmBackbone
from liteframe.models.vlm.chat import IGNORE, encode_conversation
from liteframe.models.vlm.processor import LiteFrameProcessor
from liteframe.training.failures import BadConversationsError

# Around a turn: two marks, a role of at most two tokens, two line breaks.
TOKENS_OF_A_TURN = 6
EXAMPLES = 5


def check_lengths(conversations: Sequence[Conversation], processor: Any, frames: int, limit: int) -> None:
    """Refuse conversations of more than `limit` tokens.

    Text has no more tokens than bytes, so only what might be too long is tokenized.

    Args:
        conversations: what to learn.
        processor: of the Video LLM.
        frames: the most that the videos of a conversation may have together; all are taken to be so long.
        limit: tokens that the language model reads.

    Raises:
        BadConversationsError: names the first of them by their numbers.
    """
    size, shares = processor.frame_size, {}
    image = processor.image_text(processor.tokens_per_slot(*size))

    def count(text: str) -> int:
        return len(processor.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    long, images = [], count(image)
    for number, conversation in enumerate(conversations):
        videos = sum(medium.kind != "image" for medium in conversation.media)
        share = max(1, frames // max(1, videos))
        if share not in shares:
            text = processor.video_text(processor.slots(share, *size))
            shares[share] = (text, count(text))
        video, tokens = shares[share]
        most = videos * tokens + (len(conversation.media) - videos) * images
        most += sum(len(turn.text.encode()) + TOKENS_OF_A_TURN for turn in conversation.turns)
        if most > limit:
            shown = [image if medium.kind == "image" else video for medium in conversation.media]
            found = len(encode_conversation(conversation.turns, shown, processor.tokenizer)[0])
            if found > limit:
                long.append(f"  number {number}: {found} tokens")
    if long:
        raise BadConversationsError(
            f"{len(long)} of {len(conversations)} conversations are longer than the {limit} tokens that the language "
            f"model reads, with videos of {frames} frames:\n"
            + "\n".join(long[:EXAMPLES])
            + "\nUse fewer data.frames, or shorten or remove their rows (`liteframe preview --row NUMBER` shows one)"
        )


FramesKey = tuple[str, tuple[int, ...]]
CHARACTERS_PER_TOKEN = 4  # of English text, roughly


class VideoFacts(NamedTuple):
    """Number of frames, frames per second, and pixels of a video."""

    frames: int
    fps: float
    height: int
    width: int


class Shown(NamedTuple):
    """One medium, read.

    Attributes:
        pixels: uint8 [T,3,h,w], or None where the features of these frames are known already.
        frames: which frames of which file.
        text: what stands for it in the prompt.
    """

    pixels: Tensor | None
    frames: FramesKey
    text: str


class Sample(NamedTuple):
    """One conversation.

    Attributes:
        input_ids: [L].
        labels: [L], -100 where nothing is learned.
        shown: its videos and images, in the order of the text.
        key: (epoch, index).
    """

    input_ids: list[int]
    labels: list[int]
    shown: list[Shown]
    key: Key


class ChatBatch(NamedTuple):
    """Conversations whose videos and images could be read, and a record of each of which one could not.

    Attributes:
        input_ids: [B,L], padded on the right; B may be 0 (then L is 0 too).
        attention_mask: [B,L].
        labels: [B,L], -100 where nothing is learned.
        pixels: [sum of T,3,H,W] of the media whose features are not known: uint8 from the loader, normalized float32
            on the device.
        video_frames: T of each of these.
        shown: number of media of each of the B conversations.
        frames: a key for each medium; those of unknown features in the order of `pixels`.
        known: for each medium, whether its features are known.
        keys: B keys (epoch, index).
        failures: path, kind, reason and remedy of what could not be read.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    pixels: Tensor
    video_frames: list[int]
    shown: list[int]
    frames: list[FramesKey]
    known: list[bool]
    keys: list[Key]
    failures: list[dict[str, str]]


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
        self.processor, self.budgets, self.fps, self.seed, self.known = processor, list(budgets), fps, seed, known
        self.size = processor.frame_size
        self.decoder = DecodeProcess(deadline)
        self._facts: dict[str, VideoFacts] = {}

    def __len__(self) -> int:
        """Number of conversations."""
        return len(self.conversations)

    def __getitem__(self, key: Key) -> Sample | VideoError:
        """The sample of `key` = (epoch, index), or the reason why there is none."""
        conversation = self.conversations[key[1]]
        budget, fps = draw(self.seed, key, self.budgets, self.fps)
        budget = max(1, budget // max(1, sum(medium.kind != "image" for medium in conversation.media)))
        try:
            shown = [self._shown(medium, budget, fps) for medium in conversation.media]
        except VideoError as error:
            return error
        texts = [medium.text for medium in shown]
        ids, labels = encode_conversation(conversation.turns, texts, self.processor.tokenizer)
        return Sample(ids, labels, shown, key)

    def length(self, key: Key) -> float:
        """About how many tokens a sample has, without opening a file: its whole budget, and its text."""
        conversation = self.conversations[key[1]]
        frames, _ = draw(self.seed, key, self.budgets, self.fps)
        slots = sum(medium.kind == "image" for medium in conversation.media)
        if slots < len(conversation.media):
            slots += frames // self.processor.frames_per_slot
        text = sum(len(turn.text) for turn in conversation.turns)
        return slots * self.processor.tokens_per_slot(*self.size) + text / CHARACTERS_PER_TOKEN

    def _shown(self, medium: Medium, budget: int, fps: float) -> Shown:
        if medium.kind == "image":
            key: FramesKey = (medium.files[0], ())
            pixels = None if key in self.known else self.processor.resized(read_image(medium.files[0])[None])
            return Shown(pixels, key, self.processor.image_text(self.processor.tokens_per_slot(*self.size)))
        if medium.entry is None:
            count = len(medium.files)
            chosen = list(range(count)) if count <= budget else uniform(count, budget)
            key = ("|".join(medium.files), tuple(chosen))
            files = tuple(medium.files[i] for i in chosen)
            pixels = None if key in self.known else torch.cat(read_images(files, self.processor.resized))
        else:
            chosen = self._indices(medium.entry, budget, fps)
            key = (medium.entry.video, tuple(chosen))
            pixels = None if key in self.known else self._decoded(medium.entry, chosen)
        return Shown(pixels, key, self.processor.video_text(self.processor.slots(len(chosen), *self.size)))

    def _indices(self, entry: VideoEntry, budget: int, fps: float) -> list[int]:
        facts = self._measured(entry)
        try:
            return choose_frames(
                facts.frames, facts.fps, frames=budget, target_fps=fps, start=entry.start, end=entry.end
            )
        except ValueError as error:
            remedy = "correct start and end of the row"
            raise VideoError(entry.video, "index", str(error), remedy) from error

    def _decoded(self, entry: VideoEntry, indices: list[int]) -> Tensor:
        facts = self._measured(entry)
        size = decode_size(facts.height, facts.width, self.size)
        return self.processor.resized(self.decoder.read(entry.video, indices, reader=entry.reader, size=size))

    def _measured(self, entry: VideoEntry) -> VideoFacts:
        """Length, rate and size of a video, probed once where the row does not tell."""
        if entry.video not in self._facts:
            told = (entry.frames, entry.fps, entry.height, entry.width)
            if None in told:
                info = self.decoder.probe(entry.video)
                told = (info.frames, info.fps, info.height, info.width)
            self._facts[entry.video] = VideoFacts(*told)  # type: ignore[arg-type]  # none is None here
        return self._facts[entry.video]


def collate_samples(items: Sequence[Sample | VideoError], pad_token_id: int) -> ChatBatch:
    """A batch of the conversations that could be read; failures travel beside them."""
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
    shown = [medium for sample in samples for medium in sample.shown]
    videos = [medium.pixels for medium in shown if medium.pixels is not None]
    return ChatBatch(
        input_ids=ids,
        attention_mask=mask,
        labels=labels,
        pixels=torch.cat(videos) if videos else torch.empty(0, dtype=torch.uint8),
        video_frames=[len(video) for video in videos],
        shown=[len(sample.shown) for sample in samples],
        frames=[medium.frames for medium in shown],
        known=[medium.pixels is None for medium in shown],
        keys=[sample.key for sample in samples],
        failures=[item.to_dict() for item in items if isinstance(item, VideoError)],
    )


class FeatureCache:
    """Projected features of frames seen before, on the CPU, in this process."""

    def __init__(self) -> None:
        self._features: dict[FramesKey, Tensor] = {}

    def __contains__(self, key: object) -> bool:
        return key in self._features

    def __len__(self) -> int:
        return len(self._features)

    @torch.no_grad()
    def features(self, model: VlmBackbone, batch: ChatBatch) -> BaseModelOutputWithPooling:
        """What `model.get_video_features` gives for all videos of the batch; new ones are computed and kept."""
        fresh = iter(())
        if batch.video_frames:
            fresh = iter(model.get_video_features(batch.pixels, batch.video_frames).pooler_output)
        device = batch.input_ids.device
        features = []
        for key, known in zip(batch.frames, batch.known, strict=True):
            if not known:
                self._features[key] = next(fresh).cpu()
            features.append(self._features[key].to(device))
        return BaseModelOutputWithPooling(pooler_output=features)
