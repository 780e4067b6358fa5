"""Frames that come one after another: which are taken, and how they make whole clips."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from liteframe.answer.frame_encoder import FrameEncoder
from liteframe.data.video.sampling import next_due
from liteframe.data.video.timeline import EPS


class Frames(NamedTuple):
    """Frames in a row, as an encoder wants them.

    Attributes:
        pixels: uint8 [n,3,h,w].
        first: number of the first in the video.
        seconds: at which each is shown.
    """

    pixels: Tensor
    first: int
    seconds: list[float]


class Intake:
    """What comes between a source and an encoder: frames at a rate become clips, and some wait until a clip is full.

    Args:
        encoder: whose clips they are.
        fps: frames a second that are taken, where their times are told.

    Attributes:
        frames: how many were taken so far.
        last_time: seconds of the last of them; None before the first.
        size: (h,w) at which they are encoded; None before the first.
    """

    def __init__(self, encoder: FrameEncoder, fps: float) -> None:
        self.fps, self._encoder = fps, encoder
        self.frames = 0
        self.last_time: float | None = None
        self.size: tuple[int, ...] | None = None
        self._waiting: Tensor | None = None  # [n,3,h,w] uint8 that fill no clip yet
        self._times: list[float] = []  # seconds of these
        self._next_time: float | None = None  # seconds at which the next frame is taken

    @property
    def waiting(self) -> Frames | None:
        """Frames that fill no clip yet."""
        return None if self._waiting is None else Frames(self._waiting, self.frames - len(self._waiting), self._times)

    def fork(self) -> Intake:
        """One that goes on from here; neither sees what the other is given. Tensors are shared."""
        return copy.copy(self)

    def clips(self, frames: np.ndarray, times: Sequence[float] | None, every: bool) -> Iterator[Frames]:
        """Take further frames; arguments and errors are those of StreamSession.add.

        Yields:
            One whole clip or several.
        """
        if times is not None:
            taken = self.in_time(times, len(frames), every)
            frames, seconds = frames[taken], [float(time) for time, one in zip(times, taken, strict=True) if one]
        else:
            seconds, last = [], self.last_time
            for _ in range(len(frames)):  # one by one, so that calls leave no trace
                seconds.append(last := 0.0 if last is None else last + 1 / self.fps)
        size, most = self._encoder.clip_frames, self._encoder.most_frames
        while len(frames):
            start = 0 if self._waiting is None else len(self._waiting)
            part = self.resized(frames[: most - start])  # [n,3,h,w]
            self._check_size(part, frames)
            frames = frames[most - start :]
            waiting = part if self._waiting is None else torch.cat([self._waiting, part])
            known, seconds = self._times + seconds[: len(part)], seconds[len(part) :]
            whole = len(waiting) // size * size
            if whole:
                yield Frames(waiting[:whole], self.frames - start, known[:whole])
            self.frames += len(part)
            self._waiting = waiting[whole:].clone() if whole < len(waiting) else None
            self._times, self.last_time = known[whole:], known[-1]

    def resized(self, frames: np.ndarray) -> Tensor:
        """Frames uint8 [n,H,W,3] as the encoder wants them, uint8 [n,3,h,w]."""
        return self._encoder.resized(np.ascontiguousarray(frames))  # a flip, as of BGR, has negative strides

    def in_time(self, times: Sequence[float], count: int, every: bool) -> np.ndarray:
        """Which of so many frames are taken, bool [n]; all where `every` is true.

        Raises:
            ValueError: the times are not as many, not finite, or fall back.
        """
        if len(times) != count or not np.isfinite(times).all() or any(b < a for a, b in pairwise(times)):
            raise ValueError(f"{count} frames need {count} times in ascending order, all finite, got {list(times)}")
        if count and self._next_time is not None and times[0] < (last := self._next_time - 1 / self.fps) - EPS:
            raise ValueError(f"times fall back to {times[0]} s after {last:.3f} s; a new video begins with reset()")
        if every:
            self._next_time = times[-1] + 1 / self.fps if count else self._next_time
            return np.ones(count, bool)
        taken = np.zeros(count, bool)
        for number, time in enumerate(times):
            due = time if self._next_time is None else self._next_time
            self._next_time = next_due(due, time, self.fps)
            taken[number] = self._next_time > due
        return taken

    def _check_size(self, part: Tensor, frames: np.ndarray) -> None:
        """Keep the size of the first frames; others would have tokens that stand for other places."""
        size = tuple(part.shape[-2:])
        if self.size is None:
            self.size = size
        if size != self.size:
            raise ValueError(
                f"frames of {frames.shape[1]}x{frames.shape[2]} pixels (height x width) are encoded at {size[0]}x"
                f"{size[1]}, but this video's so far at {self.size[0]}x{self.size[1]}: a video keeps its shape; "
                "begin a new one with reset(), or bring the frames to the shape of the first"
            )

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Facts and tensors from which `load_state` goes on."""
        facts = {"frames": self.frames, "times": self._times, "last_time": self.last_time, "next_time": self._next_time}
        return {**facts, "size": self.size}, {} if self._waiting is None else {"waiting": self._waiting}

    def load_state(self, facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Go on from a state; further facts and tensors may be among them."""
        self.frames, self._times, self.last_time = facts["frames"], facts["times"], facts["last_time"]
        self._next_time, self._waiting = facts["next_time"], tensors.get("waiting")
        self.size = None if facts.get("size") is None else tuple(facts["size"])
