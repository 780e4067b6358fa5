"""When each frame of a video is shown: the one place that turns seconds into frames and back.

Seconds are those of the file's time line, as a player counts them: 0 is where the first of sound and pictures begins,
so a sound that starts before the pictures counts, and so do edit lists (FFmpeg's time stamps have them applied).
A frame is on the screen from its time stamp to the next one's, the last for its own duration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

# Times come from JSON and products of floats: 2.0 s at 29.97 fps must not lose a frame to the last bit.
EPS = 1e-6
# Seconds by which time stamps may miss a straight line: files that count in milliseconds round by one.
_ROUNDING, _LARGEST_ROUNDING = 0.001, 0.002
_STILL = 1.0  # seconds that a frame from before a span must stay in it to belong to it, if not for half of the span
_LONGEST = 24 * 3600.0  # seconds that a frame may be shown; more is a broken time stamp
_RATES = (1 / _LONGEST, 1000.0)  # frames per second that are believed


class Span(NamedTuple):
    """Frames `first` to `stop - 1`, which are looked at from `begin` to `end` seconds."""

    first: int
    stop: int
    begin: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """Time stamps of a video's frames, as pieces of constant rate.

    Attributes:
        frames: number of frames.
        fps: mean rate in frames per second.
        breaks: `(frame, seconds)`, ascending, from frame 0 to `frames`, whose seconds are the last frame's end; between
            two of them the rate is constant. Two are a video of constant rate.

    Raises:
        ValueError: there is no frame, the rate is not positive, or the breaks are not such.
    """

    frames: int
    fps: float
    breaks: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        """Check the values, which may come from a file."""
        if self.frames < 1:
            raise ValueError(f"num_frames is {self.frames}; a video has at least one frame")
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"fps is {self.fps}; it must be a positive number")
        numbers, seconds = zip(*self.breaks, strict=True) if self.breaks else ((), ())
        rising = all(a < b for values in (numbers, seconds) for a, b in pairwise(values))
        ends = len(numbers) > 1 and (numbers[0], numbers[-1]) == (0, self.frames)
        if not (rising and ends and all(map(math.isfinite, seconds)) and seconds[0] >= 0):
            raise ValueError(f"the breaks do not rise from frame 0, at 0 or more seconds, to frame {self.frames}")

    @classmethod
    def constant_rate(cls, frames: int, fps: float, start: float = 0.0) -> Timeline:
        """`frames` frames at `fps`, the first at `start` seconds."""
        valid = frames >= 1 and math.isfinite(fps) and fps > 0
        return cls(frames, fps, ((0, start), (frames, start + frames / fps)) if valid else ())

    @property
    def is_constant(self) -> bool:
        """Whether frame n is shown n / fps seconds after the first."""
        return len(self.breaks) == 2

    @property
    def start(self) -> float:
        """Seconds at which the first frame is shown."""
        return self.breaks[0][1]

    @property
    def end(self) -> float:
        """Seconds at which the last frame leaves the screen."""
        return self.breaks[-1][1]

    @cached_property
    def stamps(self) -> np.ndarray:
        """Seconds at which each frame is shown, float64 `[frames]`."""
        numbers, seconds = zip(*self.breaks, strict=True)
        return np.interp(np.arange(self.frames), numbers, seconds)

    def time(self, index: int) -> float:
        """Seconds at which a frame is shown."""
        return self.start + index / self.fps if self.is_constant else float(self.stamps[index])

    def on_screen(self, seconds: np.ndarray) -> np.ndarray:
        """Index of the frame that is shown at each of these times; before the first and after the last frame, that."""
        places = np.searchsorted(self.stamps, np.asarray(seconds) + _LARGEST_ROUNDING, side="right") - 1
        return np.clip(places, 0, self.frames - 1)

    def span(self, start: float | None, end: float | None) -> Span:
        """The frames whose time stamps lie in `[start, end)` seconds; where none does, the one on the screen meanwhile.

        Where the rate varies, a frame from before `start` belongs to the span if it stays in it for a second or for
        half of the span.

        Args:
            start: None is the beginning.
            end: None is the end of the video.

        Raises:
            ValueError: a time is not finite or negative, or no frame is shown in the span.
        """
        for name, value in (("start", start), ("end", end)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}; it must be 0 or more seconds, or left out")
        begin, until = start or 0.0, self.end if end is None else min(end, self.end)
        if begin >= self.end - EPS:
            raise ValueError(f"start {begin} s lies beyond the end of the video ({self.end:.3f} s)")
        if until <= max(begin, self.start):
            shown = f"{self.start:.3f} s to {self.end:.3f} s"
            raise ValueError(f"the span from {begin} s to {end} s holds no frame; the video's are shown from {shown}")
        first, stop = self._following(begin), self.frames if end is None else self._following(end)
        following = self.time(first) if first < stop else until
        if not self.is_constant and first > 0 and following - begin >= min(_STILL, (until - begin) / 2):
            first -= 1
        if first >= stop:  # between two time stamps
            first = max(0, stop - 1)
            stop = first + 1
        return Span(first, stop, max(begin, self.time(first)), until)

    def _following(self, seconds: float) -> int:
        """Index of the first frame whose time stamp is not before `seconds`."""
        if self.is_constant:
            return min(self.frames, max(0, math.ceil((seconds - self.start) * self.fps - EPS)))
        return int(np.searchsorted(self.stamps, seconds - _LARGEST_ROUNDING))


def timeline_of(
    ticks: np.ndarray, unit: Fraction, *, header_rate: float, origin: Fraction = Fraction(0), last: int = 0
) -> tuple[Timeline, str | None]:
    """The timeline of time stamps as a file has them, and what is wrong with them, if something is.

    A time stamp that is missing, or not after all before it, is put between its neighbours, at even distances. Where
    more than half are such, or the first or the last one is, or the times cannot be (a frame for more than a day, more
    than a thousand a second), none is believed: the frames then follow each other at the rate that the file's header
    gives, from 0 on.

    Args:
        ticks: time stamps in presentation order, float64 `[frames]`, NaN where one is missing.
        unit: seconds of a tick.
        header_rate: frames per second by the file's header.
        origin: seconds at which the file's time line begins.
        last: ticks that the last frame is shown; 0 where the file does not tell.
    """
    frames = len(ticks)
    before = np.maximum.accumulate(np.concatenate([[-np.inf], np.nan_to_num(ticks, nan=-np.inf)[:-1]]))
    good = np.flatnonzero(ticks > before)  # NaN is not
    bad = frames - len(good)
    if 2 * bad > frames or good[0] != 0 or good[-1] != frames - 1:
        return _by_header(frames, header_rate, f"{bad} of its {frames} time stamps are missing or do not rise")
    if bad:
        ticks = np.interp(np.arange(frames), good, ticks[good])
    shown = float(int(ticks[-1] - ticks[0]) * unit)  # from the first frame to the last
    seconds = (ticks - float(origin / unit)) * float(unit)
    fps = (frames - 1) / shown if frames > 1 else _believable(header_rate)
    longest = max(float(np.diff(seconds, prepend=0.0).max()), last * float(unit))
    if longest > _LONGEST or fps > _RATES[1]:
        reason = f"its time stamps cannot be: {fps:.6g} frames a second, up to {longest:.6g} s apart"
        return _by_header(frames, header_rate, reason)
    wrong = f"{bad} of its {frames} time stamps are missing or do not rise; these are put between their neighbours"
    return _in_pieces(seconds, fps, float(unit), float(last * unit)), wrong if bad else None


def _by_header(frames: int, rate: float, reason: str) -> tuple[Timeline, str]:
    rate = _believable(rate)
    return Timeline.constant_rate(frames, rate), f"{reason}; its frames are taken to be shown at {rate:.6g} a second"


def _believable(rate: float) -> float:
    return rate if _RATES[0] <= rate <= _RATES[1] else 30.0


def _in_pieces(stamps: np.ndarray, fps: float, tick: float, last: float) -> Timeline:
    """Straight pieces from time stamp to time stamp, as long as those between are off by their rounding at most."""
    frames = len(stamps)
    slack = max(_ROUNDING, min(tick, _LARGEST_ROUNDING)) + EPS
    straight = np.abs(stamps - (stamps[0] + np.arange(frames) / fps)).max() <= slack
    if straight and last <= 1.5 / fps:
        return Timeline.constant_rate(frames, fps, round(float(stamps[0]), 6))
    seconds = [*np.round(stamps, 6).tolist(), round(float(stamps[-1] + (last or 1 / fps)), 6)]
    breaks = [(0, seconds[0])]
    lowest, highest = -math.inf, math.inf  # slopes of the lines that miss no time stamp since the last break
    for frame in range(1, frames + 1):
        at, since = breaks[-1]
        if not lowest <= (seconds[frame] - since) / (frame - at) <= highest:
            at, since = frame - 1, seconds[frame - 1]
            breaks.append((at, since))
            lowest, highest = -math.inf, math.inf
        lowest = max(lowest, (seconds[frame] - slack - since) / (frame - at))
        highest = min(highest, (seconds[frame] + slack - since) / (frame - at))
    return Timeline(frames, fps, (*breaks, (frames, seconds[frames])))
