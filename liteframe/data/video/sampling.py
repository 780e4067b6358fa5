"""Which frames to read: pure functions from a video's length and rate to frame indices.

All times are seconds from the first frame, all rates frames per second, all indices lie in `[0, num_frames)`.
A span `[start, end)` covers the frames whose time lies in it.
"""

from __future__ import annotations

import math

# Times come from JSON and products of floats: 2.0 s at 29.97 fps must not lose a frame to the last bit.
_EPS = 1e-6


def _span(num_frames: int, fps: float, start: float, end: float | None) -> tuple[int, int]:
    """First frame and one past the last frame of `[start, end)`; at least one frame."""
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; a video has at least one frame")
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps is {fps}; it must be a positive number")
    if not (math.isfinite(start) and start >= 0):
        raise ValueError(f"start is {start}; it must be 0 or more seconds")
    first = math.ceil(start * fps - _EPS)
    stop = num_frames if end is None else min(num_frames, math.ceil(end * fps - _EPS))
    if first >= num_frames:
        raise ValueError(f"start {start} s lies beyond the end of the video ({num_frames / fps:.3f} s)")
    if stop <= first:
        raise ValueError(f"the span from {start} s to {end} s holds no frame at {fps} fps")
    return first, stop


def dense_clip(
    num_frames: int,
    fps: float,
    *,
    n: int,
    min_fps: float = 1.0,
    start: float = 0.0,
    end: float | None = None,
    u: float = 0.5,
) -> list[int]:
    """Indices of `n` equally spaced frames, as far apart as `min_fps` and the span allow.

    The spacing is the largest whole number of frames that keeps the clip's rate at or above `min_fps` and the clip
    inside the span; a video slower than `min_fps` gives its frames one by one. A span of fewer than `n` frames gives
    all of them and then its last frame again, so indices stay valid and in order.

    Args:
        num_frames: frames in the video.
        fps: its frame rate.
        n: length of the clip in frames.
        min_fps: lowest rate of the clip.
        start: start of the span in seconds.
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
    first, stop = _span(num_frames, fps, start, end)
    frames = stop - first
    if frames <= n:
        return [min(first + i, stop - 1) for i in range(n)]
    step = max(1, math.floor(fps / min_fps + _EPS))
    if n > 1:
        step = min(step, (frames - 1) // (n - 1))
    room = frames - ((n - 1) * step + 1)
    offset = first + min(room, math.floor(u * (room + 1)))
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
    num_frames: int,
    fps: float,
    *,
    target_fps: float,
    max_frames: int,
    start: float = 0.0,
    end: float | None = None,
) -> list[int]:
    """Indices at `target_fps`, or `max_frames` uniform ones over the span where that would be too many.

    Frame k is the one shown at `(k + 0.5) / target_fps` seconds after the span's start. A target above the video's own
    rate takes each frame once; a span shorter than one period gives its middle frame.

    Args:
        num_frames: frames in the video.
        fps: its frame rate.
        target_fps: frames per second wanted.
        max_frames: the budget.
        start: start of the span in seconds.
        end: its end in seconds; None is the end of the video.

    Raises:
        ValueError: an argument is out of range or the span is empty.
    """
    if not target_fps > 0:
        raise ValueError(f"target_fps is {target_fps}; it must be positive")
    if max_frames < 1:
        raise ValueError(f"max_frames is {max_frames}; allow at least one frame")
    first, stop = _span(num_frames, fps, start, end)
    step = max(1.0, fps / target_fps)
    count = max(1, math.floor((stop - first) / step + _EPS))
    if count > max_frames:
        return uniform(num_frames, max_frames, first=first, last=stop - 1)
    return [min(stop - 1, first + math.floor((k + 0.5) * step)) for k in range(count)]


def choose_frames(
    num_frames: int,
    fps: float,
    *,
    frames: int | None = None,
    target_fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
) -> list[int]:
    """Indices of the frames that a user asks for: at most `frames`, at most `target_fps` a second.

    Args:
        num_frames: frames in the video.
        fps: its frame rate.
        frames: at most so many, spread evenly over the span; None sets no limit.
        target_fps: frames a second, as many of them as `frames` allows. None takes `frames` whatever the rate; with
            neither, 1 frame a second, the lowest rate that encoders are trained at.
        start: start of the span in seconds; None is the video's.
        end: its end in seconds; None is the video's.

    Raises:
        ValueError: an argument is out of range or the span is empty.
    """
    if target_fps is None:
        target_fps = 1.0 if frames is None else fps
    budget = num_frames if frames is None else frames
    return at_fps(num_frames, fps, target_fps=target_fps, max_frames=budget, start=start or 0.0, end=end)
