"""Videos and images of conversations: what is drawn to be shown of each in an epoch, and how it is read."""

import hashlib
import json
from collections.abc import Container, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from liteframe.align.conversation_rows import MediaItem
from liteframe.data.manifest import VideoEntry
from liteframe.data.preprocess import decode_size
from liteframe.data.video.errors import VideoError
from liteframe.data.video.process import DecodeProcess
from liteframe.data.video.sampling import choose_frames, uniform
from liteframe.data.video.timeline import Timeline
from liteframe.models.vlm.processor import LiteFrameProcessor, Shown
from liteframe.pictures import PictureError, read_picture

MediaKey = tuple[str, tuple[int, ...]]  # file, and which of its frames


class LoadedMedia(NamedTuple):
    """One video or image, read.

    Attributes:
        pixels: uint8 [T,3,h,w], or None where the features of these frames are cached.
        key: which frames of which file.
        shown: what stands for it in the prompt.
        seconds: when each of the frames is shown, where there are times.
        grid: what the encoder makes of these frames [T',h,w,C], where a token cache holds it.
    """

    pixels: Tensor | None
    key: MediaKey
    shown: Shown
    seconds: list[float] | None = None
    grid: Tensor | None = None


class Draws(NamedTuple):
    """What is shown of a video: drawn for each epoch by the seed and what the video is, alike for all rows about it.

    Attributes:
        budgets: numbers of frames, one of which is drawn as the most that a row may show.
        fps: range of the frame rate that is drawn.
        seed: of the draws.
    """

    budgets: Sequence[int]
    fps: tuple[float, float]
    seed: int = 0

    def of(self, epoch: int, medium: MediaItem, sharing: int) -> tuple[int, float]:
        """The most frames of a medium and their rate; `sharing` videos have to do with the budget together."""
        digest = hashlib.sha256(json.dumps(medium.identity()).encode()).digest()
        rng = np.random.default_rng([self.seed, epoch, int.from_bytes(digest[:8])])
        budget, fps = int(rng.choice(list(self.budgets))), float(rng.uniform(*self.fps))
        return max(1, budget // max(1, sharing)), fps


class MediaSource(Protocol):
    """Where a data set gets its media from."""

    def load(self, epoch: int, medium: MediaItem, sharing: int) -> LoadedMedia:
        """What is shown in an epoch of a medium, one of `sharing` videos of a row; raises VideoError."""
        ...

    def drawn(self, epoch: int, medium: MediaItem, sharing: int) -> tuple[int, float]:
        """The most frames of that and their rate."""
        ...


class MediaReader:
    """Reads what is to be shown of a medium from its file.

    Args:
        processor: of the Video LLM.
        draws: what is to be shown.
        deadline: seconds that reading one file may take.
        cached: keys of frames whose features need not be computed again; their files are not read.
    """

    def __init__(self, processor: LiteFrameProcessor, draws: Draws, deadline: float, cached: Container[MediaKey] = ()):
        self.processor, self.draws, self.cached = processor, draws, cached
        self.decoder = DecodeProcess(deadline)
        self._shapes: dict[str, tuple[int, int]] = {}  # of pictures that were read
        self._facts: dict[str, VideoEntry] = {}

    def load(self, epoch: int, medium: MediaItem, sharing: int) -> LoadedMedia:
        """What is shown in an epoch of a medium, one of `sharing` videos of a row.

        Raises:
            VideoError: it cannot be read.
        """
        return self.read(medium, *self.drawn(epoch, medium, sharing))

    def drawn(self, epoch: int, medium: MediaItem, sharing: int) -> tuple[int, float]:
        """The most frames of that and their rate."""
        return self.draws.of(epoch, medium, sharing)

    def read(self, medium: MediaItem, budget: int, fps: float) -> LoadedMedia:
        """At most `budget` frames of a medium, at `fps` frames per second where it has times.

        Raises:
            VideoError: it cannot be read.
        """
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
        return LoadedMedia(pixels, key, self.processor.shown_video(len(chosen), *size, seconds), seconds)

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


def expected(processor: LiteFrameProcessor, medium: MediaItem, budget: int, fps: float) -> tuple[int, int, int]:
    """How many frames are shown of a medium, and their height and width in pixels, as far as its row tells.

    A video of which it tells nothing is taken to be long enough for its budget.
    """
    frames, size = budget, processor.frame_size
    if medium.entry is None:
        frames = min(len(medium.files), budget)
    elif (timeline := medium.entry.timeline) is not None:
        with suppress(ValueError):  # a span without frames is told when it is read
            start, end = medium.entry.start, medium.entry.end
            frames = len(choose_frames(timeline, frames=budget, target_fps=fps, start=start, end=end))
    if medium.entry is not None and medium.entry.height is not None and medium.entry.width is not None:
        with suppress(ValueError):
            size = processor.size_of(medium.entry.height, medium.entry.width)
    return (frames, *size)
