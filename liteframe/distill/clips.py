"""Dense clips of videos as a map-style dataset, by a key that says which clip; and batches of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from liteframe.data.manifest import VideoEntry
from liteframe.data.preprocess import FrameFormat, FrameTransform, decode_size
from liteframe.data.stream import Key
from liteframe.data.video.errors import VideoError
from liteframe.data.video.process import DecodeProcess
from liteframe.data.video.sampling import dense_clip
from liteframe.data.video.timeline import Timeline
from liteframe.distill.clip_view import Augmentation, ClipView, draw_view


class Clip(NamedTuple):
    """One clip, as a worker makes it.

    Attributes:
        frames: uint8 [T,h,w,3], cropped and flipped, not yet resized.
        view: which clip it is.
        key: (epoch, index).
        target: what the student shall emit [T',h,w,C], where a cache holds it.
        log_weights: of the target's tokens [T',h,w], where the cache has them (see Pooled).
    """

    frames: Tensor
    view: ClipView
    key: Key
    target: Tensor | None = None
    log_weights: Tensor | None = None


class RawBatch(NamedTuple):
    """Clips on their way from the workers to the device, in bytes.

    Attributes:
        frames: uint8, all clips one after the other; one tensor, for each that a worker shares holds a file open.
        shapes: of each clip: T, h, w, 3.
        sizes: (height, width) in pixels to which each clip is brought.
        frame_mask: bool [B,T].
        paths: B files.
        failures: path, kind, reason and remedy of each clip that failed.
        keys: B keys (epoch, index).
        targets: [B,T',h,w,C] from a cache, or None.
        log_weights: [B,T',h,w] of the targets, or None.
    """

    frames: Tensor
    shapes: list[tuple[int, ...]]
    sizes: list[tuple[int, int]]
    frame_mask: Tensor
    paths: list[str]
    failures: list[dict[str, str]]
    keys: list[Key]
    targets: Tensor | None
    log_weights: Tensor | None = None


class ClipBatch(NamedTuple):
    """Clips that could be read, on the device, and a record of each that could not.

    Attributes:
        video: float32 [B,T,3,H,W], normalized; B may be 0 (then the tensor has no other size either).
        frame_mask: bool [B,T]; False where a frame comes again (the last of a short video, one that stays on screen).
        paths: B files.
        failures: path, kind, reason and remedy of each clip that failed.
        keys: B keys (epoch, index).
        targets: [B,T',h,w,C] from a cache, or None.
        log_weights: [B,T',h,w] of the targets, or None.
    """

    video: Tensor
    frame_mask: Tensor
    paths: list[str]
    failures: list[dict[str, str]]
    keys: list[Key]
    targets: Tensor | None
    log_weights: Tensor | None = None


class ClipDataset(Dataset["Clip | VideoError"]):
    """`dataset[(epoch, index)]` is a dense clip of video `index`, placed and augmented by (seed, epoch, index) alone.

    A video that cannot be read comes back as the `VideoError` itself, never as another video. Decoding runs in a child
    process under a deadline.

    Args:
        entries: the videos.
        frame_format: how the teacher wants frames; those far larger are shrunk while decoding.
        sizes: (height, width) in pixels that the run has of each video, by which it puts clips into batches; None takes
            them as they come.
        clip_frames: T, frames of a clip.
        min_fps: lowest rate of a clip in frames per second.
        augment: None takes the middle clip of each video, unchanged.
        seed: seed of positions and augmentation.
        decoder: reads the files; several data sets can share one. None is one of its own.
    """

    def __init__(
        self,
        entries: Sequence[VideoEntry],
        frame_format: FrameFormat,
        *,
        clip_frames: int,
        sizes: Sequence[tuple[int, int]] | None = None,
        min_fps: float = 1.0,
        augment: Augmentation | None = None,
        seed: int = 0,
        decoder: DecodeProcess | None = None,
    ):
        self.entries = list(entries)
        self.clip_frames, self.min_fps, self.augment, self.seed = clip_frames, min_fps, augment, seed
        self.frame_format, self.sizes = frame_format, sizes
        self.decoder = DecodeProcess() if decoder is None else decoder

    def __len__(self) -> int:
        """Number of videos."""
        return len(self.entries)

    def __getitem__(self, key: Key) -> Clip | VideoError:
        """The clip of `key` = (epoch, index), or the reason why there is none."""
        try:
            view = self.view(key)
            return Clip(torch.from_numpy(self.frames(view)), view, key)
        except VideoError as error:
            return error

    def view(self, key: Key) -> ClipView:
        """Which frames, crop and flip `key` = (epoch, index) stands for; nothing is decoded.

        Raises:
            VideoError: the file cannot be probed, is too elongated for its own aspect ratio, has another shape than
                when the run began, or the manifest's span holds no frame.
        """
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        timeline, height, width = self._measured(index)
        entry = self.entries[index]
        try:
            indices = dense_clip(
                timeline, n=self.clip_frames, min_fps=self.min_fps, start=entry.start, end=entry.end,
                u=rng.random() if self.augment else 0.5,
            )  # fmt: skip
        except ValueError as error:
            raise VideoError(entry.video, "index", str(error), "correct start and end in the manifest") from error
        size = self._size(index, height, width)
        shrunk = decode_size(height, width, size)
        box, flip = None, False
        if self.augment:
            box, flip = draw_view(*(shrunk or (height, width)), self.augment, rng)
        return ClipView(entry.video, tuple(indices), size, entry.reader, shrunk, box, flip)

    def frames(self, view: ClipView) -> np.ndarray:
        """Uint8 [T,h,w,3]: decoded, cropped and flipped, not yet resized.

        Raises:
            VideoError: the frames cannot be had exactly.
        """
        return view.cut(self.decoder.read(view.video, view.indices, reader=view.reader, size=view.decode_size))

    def _size(self, index: int, height: int, width: int) -> tuple[int, int]:
        video = self.entries[index].video
        try:
            size = self.frame_format.size_of(height, width)
        except ValueError as error:
            raise VideoError(video, "shape", str(error)) from error
        if self.sizes is not None and size != self.sizes[index]:
            known = "x".join(map(str, self.sizes[index]))
            raise VideoError(video, "index", f"has frames of {height}x{width} now; the run began with clips of {known}")
        return size

    def _measured(self, index: int) -> tuple[Timeline, int, int]:
        """Timeline, height and width; a file of which the manifest does not tell them all is looked through."""
        entry = self.entries[index]
        timeline, height, width = entry.timeline, entry.height, entry.width
        if timeline is None or height is None or width is None:
            info = self.decoder.probe(entry.video)
            self.entries[index] = entry.with_facts(info)
            return info.timeline, info.height, info.width
        return timeline, height, width


def collate_clips(items: Sequence[Clip | VideoError]) -> RawBatch:
    """A batch of the clips that could be read; failures travel beside them."""
    clips = [item for item in items if isinstance(item, Clip)]
    targets = [clip.target for clip in clips if clip.target is not None]
    log_weights = [clip.log_weights for clip in clips if clip.log_weights is not None]
    return RawBatch(
        torch.cat([clip.frames.flatten() for clip in clips]) if clips else torch.empty(0, dtype=torch.uint8),
        [tuple(clip.frames.shape) for clip in clips],
        [clip.view.size for clip in clips],
        torch.tensor([clip.view.frame_mask for clip in clips], dtype=torch.bool),
        [clip.view.video for clip in clips],
        [item.to_dict() for item in items if isinstance(item, VideoError)],
        [clip.key for clip in clips],
        torch.stack(targets) if targets else None,
        torch.stack(log_weights) if log_weights else None,
    )


def resize_clips(batch: RawBatch, transform: FrameTransform) -> list[Tensor]:
    """Uint8 [T,3,H,W] of each clip, on the device that the frames are on."""
    parts = batch.frames.split([math.prod(shape) for shape in batch.shapes])
    return [
        transform.resized(part.view(shape), size)
        for part, shape, size in zip(parts, batch.shapes, batch.sizes, strict=True)
    ]


def dress(batch: RawBatch, transform: FrameTransform) -> ClipBatch:
    """Resize and normalize the frames of a batch, all clips of which have one size, on the device that they are on."""
    videos = resize_clips(batch, transform)
    return ClipBatch(transform.normalized(torch.stack(videos)) if videos else torch.empty(0), *batch[3:])
