"""Which frames to read: pure functions from a video's timeline to frame indices.

All times are seconds on the file's time line, all rates frames per second. Where the rate is constant, the rules are
those of whole frames (InternVL's among them); where it varies, they are the same rules in seconds: "evenly" is evenly
in time, and each time gives the frame that is on the screen then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from liteframe.data.video.timeline import EPS, Span, Timeline

SAMPLINGS = ("even", "clips")
CLIP, CLIP_FPS = 4, 2.0  # frames of Apollo's clips, and how many of them a second


def dense_clip(
    timeline: Timeline,
    *,
    n: int,
    min_fps: float = 1.0,
    start: float | None = None,
    end: float | None = None,
    u: float = 0.5,
) -> list[int]:
    """Indices of `n` equally spaced frames, as far apart as `min_fps` and the span allow.

    At a constant rate the spacing is the largest whole number of frames that keeps the clip's rate at or above
    `min_fps` and the clip inside the span; else the clip's times are equally spaced, and a frame that stays on the
    screen for longer comes again. A video slower than `min_fps` gives its frames one by one. A span of fewer than `n`
    frames gives all of them and then its last frame again, so indices stay valid and in order.

    Args:
        timeline: when the video's frames are shown.
        n: length of the clip in frames.
        min_fps: lowest rate of the clip.
        start: start of the span in seconds; None is the video's.
        end: its end in seconds; None is the end of the video.
        u: where in the span the clip lies, from 0 (its start) to 1 (its end); draw it in [0, 1) for a random clip.

    Raises:
        ValueError: an argument is out of range or the span is empty.
    """
    if n < 1:
        raise ValueError(f"n is {n}; a clip has at least one frame")
    if not min_fps > 0:
        raise ValueError(f"min_fps is {min_fps}; it must be positive")
    if not 0 <= u <= 1:
        raise ValueError(f"u is {u}; it must lie in [0, 1]")
    span = timeline.span(start, end)
    frames = span.stop - span.first
    if frames <= n:
        return [min(span.first + i, span.stop - 1) for i in range(n)]
    seconds = timeline.time(span.stop - 1) - span.begin
    rate = timeline.fps if timeline.is_constant else (frames - 1) / seconds
    step = max(1, math.floor(rate / min_fps + EPS))
    if step > 1 and not timeline.is_constant:
        spacing = min(1 / min_fps, seconds / max(1, n - 1))
        times = span.begin + u * (seconds - (n - 1) * spacing) + np.arange(n) * spacing
        return _shown(timeline, span, times)
    if n > 1:
        step = min(step, (frames - 1) // (n - 1))
    room = frames - ((n - 1) * step + 1)
    offset = span.first + min(room, math.floor(u * (room + 1)))
    return [offset + i * step for i in range(n)]


def uniform(num_frames: int, n: int, *, first: int = 0, last: int | None = None) -> list[int]:
    """Indices of the middles of `n` equal segments of `[first, last]` (InternVL's rule).

    Fewer frames than `n` give repeated indices.

    Args:
        num_frames: frames in the video.
        n: number of indices.
        first: first frame of the span.
        last: its last frame, included; None is the last frame of the video.

    Raises:
        ValueError: an argument is out of range.
    """
    last = num_frames - 1 if last is None else last
    if n < 1:
        raise ValueError(f"n is {n}; ask for at least one frame")
    if not 0 <= first <= last < num_frames:
        raise ValueError(f"frames {first} to {last} do not lie in a video of {num_frames} frames")
    segment = (last - first) / n
    return [int(first + segment / 2 + round(segment * k)) for k in range(n)]


def at_fps(
    timeline: Timeline,
    *,
    target_fps: float,
    max_frames: int,
    start: float | None = None,
    end: float | None = None,
) -> list[int]:
    """Indices at `target_fps`, or `max_frames` evenly over the span where that would be too many.

    Frame k is the one shown at `(k + 0.5) / target_fps` seconds after the span's start. A target above the video's own
    rate takes each frame once; a span shorter than one period gives its middle frame.

    Args:
        timeline: when the video's frames are shown.
        target_fps: frames per second wanted.
        max_frames: the budget.
        start: start of the span in seconds; None is the video's.
        end: its end in seconds; None is the end of the video.

    Raises:
        ValueError: an argument is out of range or the span is empty.
    """
    if not target_fps > 0:
        raise ValueError(f"target_fps is {target_fps}; it must be positive")
    if max_frames < 1:
        raise ValueError(f"max_frames is {max_frames}; allow at least one frame")
    span = timeline.span(start, end)
    if timeline.is_constant:
        step = max(1.0, timeline.fps / target_fps)
        count = max(1, math.floor((span.stop - span.first) / step + EPS))
        if count > max_frames:
            return _evenly(timeline, span, max_frames)
        return [min(span.stop - 1, span.first + math.floor((k + 0.5) * step)) for k in range(count)]
    count = math.floor((span.end - span.begin) * target_fps + EPS)
    if count == 0:
        return _evenly(timeline, span, 1)
    # How many times k have passed when each frame comes, and when the last one goes: those with one of their own.
    edges = np.append(timeline.stamps[span.first : span.stop], span.end)
    passed = np.clip(np.ceil((edges - span.begin) * target_fps - 0.5 - EPS), 0, count)
    chosen = span.first + np.flatnonzero(np.diff(passed))
    return chosen.tolist() if len(chosen) <= max_frames else _evenly(timeline, span, max_frames)


def fps_clips(
    timeline: Timeline, *, clips: int, target_fps: float, start: float | None = None, end: float | None = None
) -> list[int]:
    """Indices of clips of 4 frames at one rate, whatever lies between clips (Apollo, arXiv 2412.10360).

    Each clip is in the middle of its part of the span. Where clips are longer than their parts, they begin at even
    distances and overlap. A span shorter than a clip gives its last frame again, and so does a video of no more than
    half the rate with each of its frames.

    Args:
        timeline: when the video's frames are shown.
        clips: how many.
        target_fps: frames per second inside a clip.
        start: start of the span in seconds; None is the video's.
        end: its end in seconds; None is the end of the video.

    Raises:
        ValueError: an argument is out of range or the span is empty.
    """
    if clips < 1:
        raise ValueError(f"clips is {clips}; ask for at least one")
    if not target_fps > 0:
        raise ValueError(f"target_fps is {target_fps}; it must be positive")
    span, inside = timeline.span(start, end), np.arange(CLIP)
    if timeline.is_constant and timeline.fps > target_fps / 2:
        total, step = span.stop - span.first, max(1, math.floor(timeline.fps / target_fps + EPS))
        firsts = [int(begin) for begin in _begins(total, clips, CLIP * step, whole=True)]
        return [min(span.stop - 1, span.first + first + int(k) * step) for first in firsts for k in inside]
    begins = _begins(span.end - span.begin, clips, CLIP / target_fps, whole=False)
    times = np.array([span.begin + begin + inside / target_fps for begin in begins]).ravel()
    return _shown(timeline, span, times)


def _begins(total: float, clips: int, length: float, *, whole: bool) -> list[float]:
    """Where clips of a length begin in a span, all in frames (rounded down, if whole) or seconds."""

    def divided(value: float, by: int) -> float:
        return value // by if whole else value / by

    part = divided(total, clips)
    if part > length:
        return [number * part + divided(part - length, 2) for number in range(clips)]
    apart = divided(max(0, total - length), max(1, clips - 1))
    return [number * apart for number in range(clips)]


def choose_frames(
    timeline: Timeline,
    *,
    frames: int | None = None,
    target_fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
    sampling: str = "even",
) -> list[int]:
    """Indices of the frames that a user asks for: at most `frames`, at most `target_fps` a second.

    Args:
        timeline: when the video's frames are shown.
        frames: at most so many, spread evenly over the span's time; None sets no limit.
        target_fps: frames a second, as many of them as `frames` allows. None takes `frames` whatever the rate; with
            neither, 1 frame a second, the lowest rate that encoders are trained at.
        start: start of the span in seconds; None is the video's.
        end: its end in seconds; None is the video's.
        sampling: "even", or "clips": as many clips of 4 frames at `target_fps`, by default 2, as `frames` allows and
            have room beside each other (Apollo's overlap where they have not, and time would fall back).

    Raises:
        ValueError: an argument is out of range or the span is empty.
    """
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling={sampling!r}: expected one of {', '.join(SAMPLINGS)}")
    if sampling == "clips":
        rate = CLIP_FPS if target_fps is None else target_fps
        if not rate > 0 or (frames is not None and frames < CLIP):
            raise ValueError(f"frames={frames}, fps={rate}: a clip has {CLIP} frames, at a rate above 0")
        span = timeline.span(start, end)
        spacing = 1 / rate
        if timeline.is_constant and timeline.fps > rate / 2:
            spacing = max(1, math.floor(timeline.fps / rate + EPS)) / timeline.fps
        room = max(1, math.floor((span.end - span.begin) / (CLIP * spacing) + EPS))
        clips = room if frames is None else min(room, frames // CLIP)
        return fps_clips(timeline, clips=clips, target_fps=rate, start=start, end=end)
    if target_fps is not None or frames is None:
        rate = 1.0 if target_fps is None else target_fps
        budget = timeline.frames if frames is None else frames
        return at_fps(timeline, target_fps=rate, max_frames=budget, start=start, end=end)
    if frames < 1:
        raise ValueError(f"frames is {frames}; allow at least one frame")
    span = timeline.span(start, end)
    if span.stop - span.first <= frames:
        return list(range(span.first, span.stop))
    return _evenly(timeline, span, frames)


def as_they_come(timeline: Timeline, fps: float, *, start: float | None = None, end: float | None = None) -> list[int]:
    """Indices of the frames that a stream takes: the first, then each that is shown when the next one is due.

    What is taken up to a moment does not depend on what comes after it.

    Args:
        timeline: when the video's frames are shown.
        fps: frames a second that are taken; above the video's own rate, each is.
        start: start of the span in seconds; None is the video's.
        end: its end in seconds; None is the end of the video.

    Raises:
        ValueError: an argument is out of range or the span is empty.
    """
    if not fps > 0:
        raise ValueError(f"fps is {fps}; it must be positive")
    span = timeline.span(start, end)
    chosen, due = [], timeline.time(span.first)
    for index in range(span.first, span.stop):
        before, due = due, next_due(due, timeline.time(index), fps)
        if due > before:
            chosen.append(index)
    return chosen


def next_due(due: float, seconds: float, fps: float) -> float:
    """When a stream's next frame is due, once one is shown at `seconds`; later than `due` if that one is taken.

    Args:
        due: from when on a frame is taken, in seconds.
        seconds: at which one is shown.
        fps: frames a second that are taken.
    """
    if seconds >= due - EPS:
        while due <= seconds + EPS:
            due += 1 / fps
    return due


def rate_of(times: Sequence[float]) -> float | None:
    """Frames a second of frames shown at these seconds, by the median distance; None of fewer than two moments."""
    apart = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    return 1 / apart if apart > 0 else None


def _evenly(timeline: Timeline, span: Span, n: int) -> list[int]:
    """The frames shown in the middles of `n` equal parts of a span that has more frames than that."""
    if timeline.is_constant:
        return uniform(timeline.frames, n, first=span.first, last=span.stop - 1)
    return _shown(timeline, span, span.begin + (np.arange(n) + 0.5) * ((span.end - span.begin) / n))


def _shown(timeline: Timeline, span: Span, seconds: np.ndarray) -> list[int]:
    return np.clip(timeline.on_screen(seconds), span.first, span.stop - 1).tolist()
