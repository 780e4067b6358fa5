"""Dense clips of videos as a map-style dataset: the key says which clip, so any clip can be had again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from liteframe.data.augment import Augmentation, augment_frames
from liteframe.data.decode_process import DecodeProcess
from liteframe.data.frame_sampling import dense_clip
from liteframe.data.manifest import VideoEntry
from liteframe.data.sampler import Key
from liteframe.data.transforms import FrameTransform
from liteframe.data.video_types import VideoError

# Frames larger than this many times the wanted size are shrunk inside the decoder: a 4K clip would fill the memory.
OVERSIZE = 2


class Clip(NamedTuple):
    """One clip.

    Attributes:
        video: float32 [T,3,H,W], normalised.
        frame_mask: bool [T]; False where a short video's last frame is repeated.
        path: the file it comes from.
    """

    video: Tensor
    frame_mask: Tensor
    path: str


class ClipBatch(NamedTuple):
    """Clips that could be read, and a record of each that could not.

    Attributes:
        video: float32 [B,T,3,H,W]; B may be 0 (then the tensor has no other size either).
        frame_mask: bool [B,T].
        paths: B files.
        failures: path, kind, reason and remedy of each clip that failed.
    """

    video: Tensor
    frame_mask: Tensor
    paths: list[str]
    failures: list[dict[str, str]]


@dataclass(frozen=True)
class FrameFormat:
    """How the teacher wants its frames: size in pixels, normalisation, and how a frame reaches that size."""

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str


class ClipDataset(Dataset["Clip | VideoError"]):
    """`dataset[(epoch, index)]` is a dense clip of video `index`, placed and augmented by (seed, epoch, index) alone.

    A video that cannot be read comes back as the `VideoError` itself, never as another video. Decoding runs in a child
    process under a deadline.

    Args:
        entries: the videos.
        frame_format: how the teacher wants frames.
        clip_frames: T, frames of a clip.
        min_fps: lowest rate of a clip in frames per second.
        augment: None takes the middle clip of each video, unchanged.
        seed: seed of positions and augmentation.
        deadline: seconds that reading one file may take.
    """

    def __init__(
        self,
        entries: Sequence[VideoEntry],
        frame_format: FrameFormat,
        *,
        clip_frames: int,
        min_fps: float = 1.0,
        augment: Augmentation | None = None,
        seed: int = 0,
        deadline: float = 30.0,
    ):
        self.entries = list(entries)
        self.clip_frames, self.min_fps, self.augment, self.seed = clip_frames, min_fps, augment, seed
        self.size = frame_format.size
        self.transform = FrameTransform(
            frame_format.size, frame_format.mean, frame_format.std, resize=frame_format.resize
        )
        self.decoder = DecodeProcess(deadline)

    def __len__(self) -> int:
        """Number of videos."""
        return len(self.entries)

    def __getitem__(self, key: Key) -> Clip | VideoError:
        """The clip of `key` = (epoch, index), or the reason why there is none."""
        epoch, index = key
        try:
            return self._clip(self._measured(index), np.random.default_rng([self.seed, epoch, index]))
        except VideoError as error:
            return error

    def _measured(self, index: int) -> VideoEntry:
        """The entry with frames, fps and size, probed once where the manifest does not tell."""
        entry = self.entries[index]
        if None in (entry.frames, entry.fps, entry.width, entry.height):
            info = self.decoder.probe(entry.video)
            entry = VideoEntry(
                entry.video, entry.start, entry.end, info.duration, info.fps, info.width, info.height, info.frames,
                entry.reader,
            )  # fmt: skip
            self.entries[index] = entry
        return entry

    def _clip(self, entry: VideoEntry, rng: np.random.Generator) -> Clip:
        assert entry.frames is not None
        assert entry.fps is not None
        assert entry.height is not None
        assert entry.width is not None
        try:
            indices = dense_clip(
                entry.frames, entry.fps, n=self.clip_frames, min_fps=self.min_fps, start=entry.start or 0.0,
                end=entry.end, u=rng.random() if self.augment else 0.5,
            )  # fmt: skip
        except ValueError as error:
            raise VideoError(entry.video, "index", str(error), "correct start and end in the manifest") from error
        size = decode_size(entry.height, entry.width, self.size)
        frames = self.decoder.read(entry.video, indices, reader=entry.reader, size=size)
        if self.augment:
            frames = augment_frames(frames, self.augment, rng)
        mask = [i == 0 or indices[i] > indices[i - 1] for i in range(len(indices))]
        return Clip(self.transform(frames), torch.tensor(mask), entry.video)


def decode_size(height: int, width: int, wanted: tuple[int, int]) -> tuple[int, int] | None:
    """Size (height, width) to shrink to while decoding, or None to keep the file's own."""
    scale = OVERSIZE * max(wanted) / min(height, width)
    return None if scale >= 1 else (round(height * scale), round(width * scale))


def collate_clips(items: Sequence[Clip | VideoError]) -> ClipBatch:
    """A batch of the clips that could be read; failures travel beside them."""
    clips = [item for item in items if isinstance(item, Clip)]
    failures = [item.to_dict() for item in items if isinstance(item, VideoError)]
    if not clips:
        return ClipBatch(torch.empty(0), torch.empty(0, dtype=torch.bool), [], failures)
    return ClipBatch(
        torch.stack([clip.video for clip in clips]),
        torch.stack([clip.frame_mask for clip in clips]),
        [clip.path for clip in clips],
        failures,
    )
