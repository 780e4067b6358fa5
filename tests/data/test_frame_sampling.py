import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liteframe.data.video.sampling import at_fps, choose_frames, dense_clip, fps_clips, uniform
from liteframe.data.video.timeline import Timeline

steady = Timeline.constant_rate
lengths = st.integers(1, 5000)
rates = st.floats(0.2, 240)
places = st.floats(0, 1)


# methods.md 14.4
@pytest.mark.parametrize(
    ("frames", "n", "expected"), [(100, 8, [6, 18, 31, 43, 56, 68, 80, 93]), (10, 4, [1, 3, 5, 8])]
)
def test_uniform_is_internvls_rule(frames, n, expected):
    assert uniform(frames, n) == expected


@given(lengths, st.integers(1, 600), st.data())
def test_uniform_stays_in_its_span_and_order(frames, n, data):
    first = data.draw(st.integers(0, frames - 1))
    last = data.draw(st.integers(first, frames - 1))
    chosen = uniform(frames, n, first=first, last=last)
    assert len(chosen) == n
    assert chosen == sorted(chosen)
    assert first <= chosen[0]
    assert chosen[-1] <= last


def test_dense_clip_by_hand():
    # 30 fps at 1 fps: one frame a second; 16 frames span 15 s = 451 frames, so 149 of 600 are left to place it
    assert dense_clip(steady(600, 30), n=16, u=0.0) == list(range(0, 451, 30))
    assert dense_clip(steady(600, 30), n=16, u=1.0) == list(range(149, 600, 30))
    assert dense_clip(steady(600, 30), n=16, min_fps=4, u=0.0)[:3] == [0, 7, 14]
    # 5 s at 30 fps hold 16 frames at a spacing of 149 // 15 = 9
    assert dense_clip(steady(150, 30), n=16, u=0.0) == list(range(0, 136, 9))
    assert dense_clip(steady(300, 30), n=4, start=2.0, end=3.0, u=0.0) == [60, 69, 78, 87]
    # too short: all frames, then the last again
    assert dense_clip(steady(3, 30), n=5) == [0, 1, 2, 2, 2]
    assert dense_clip(steady(300, 30), n=4, start=9.95) == [299, 299, 299, 299]
    # slower than the wanted rate: every frame
    assert dense_clip(steady(20, 0.5), n=4, u=0.0) == [0, 1, 2, 3]
    assert dense_clip(steady(20, 30), n=1, u=0.5) == [10]


@given(lengths, rates, st.integers(1, 64), st.floats(0.5, 8), places)
def test_dense_clip_has_the_widest_spacing_that_rate_and_length_allow(frames, fps, n, min_fps, u):
    chosen = dense_clip(steady(frames, fps), n=n, min_fps=min_fps, u=u)
    assert len(chosen) == n
    assert chosen[0] >= 0
    assert chosen[-1] < frames
    steps = {b - a for a, b in itertools.pairwise(chosen)}
    if frames < n:
        assert chosen == [*range(frames), *[frames - 1] * (n - frames)]
    elif n > 1:
        assert len(steps) == 1
        step = steps.pop()
        assert step == 1 or fps / step >= min_fps * (1 - 1e-5)
        wider = step + 1
        assert fps / wider < min_fps * (1 + 1e-5) or (n - 1) * wider + 1 > frames


APOLLO = {  # frames, rate, tokens of a clip, tokens of the prompt -> first frame of each clip, spacing
    (240, 30, 128, 32768): ([0, 60, 120, 180], 15),
    (3000, 30, 128, 1000): (list(range(220, 3000, 500)), 15),
    (70, 30, 128, 32768): ([0, 10], 15),
    (20, 30, 128, 32768): ([0], 15),
    (48, 24, 16, 32768): ([0], 12),
}


@pytest.mark.parametrize("case", APOLLO)
def test_clips_are_apollos(case):
    frames, fps, tokens, room = case
    firsts, step = APOLLO[case]
    clips = math.ceil(min(frames / fps / 2, 0.65 * room / tokens))
    assert clips * tokens <= 0.65 * room + tokens
    expected = [min(frames - 1, first + k * step) for first in firsts for k in range(4)]
    assert fps_clips(steady(frames, fps), clips=clips, target_fps=2) == expected


@given(lengths, rates, st.sampled_from([0.5, 2.0, 4.0]), st.integers(4, 300))
def test_chosen_clips_follow_each_other_at_one_rate(frames, fps, target, budget):
    timeline = steady(frames, fps)
    chosen = choose_frames(timeline, frames=budget, target_fps=target, sampling="clips")
    assert 4 <= len(chosen) <= budget
    assert len(chosen) % 4 == 0
    assert chosen == sorted(chosen)
    assert chosen[0] >= 0
    assert chosen[-1] < frames
    for first in range(0, len(chosen) - 4, 4):
        assert chosen[first + 3] <= chosen[first + 4]
        if fps > target:
            steps = {b - a for a, b in itertools.pairwise(chosen[first : first + 4])}
            assert steps == {math.floor(fps / target + 1e-6)}


def test_clips_of_a_rate_that_varies():
    """Two seconds of 10 frames a second, two of 40: half a second apart all the same, wherever a clip lies."""
    timeline = Timeline(100, 25.0, ((0, 0.0), (20, 2.0), (100, 4.0)))
    chosen = choose_frames(timeline, frames=8, sampling="clips")
    assert [timeline.time(index) for index in chosen] == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5])
    assert choose_frames(steady(4, 1), sampling="clips") == [0, 0, 1, 1, 2, 2, 3, 3]
    with pytest.raises(ValueError, match="a clip has 4 frames"):
        choose_frames(timeline, frames=3, sampling="clips")


@given(lengths, rates, st.floats(0.1, 60), st.integers(1, 512))
def test_at_fps_takes_the_frame_shown_at_each_time(frames, fps, target, budget):
    chosen = at_fps(steady(frames, fps), target_fps=target, max_frames=budget)
    assert 1 <= len(chosen) <= budget
    period = max(1 / fps, 1 / target)
    times = [(k + 0.5) * period for k in range(max(1, math.floor(frames / fps / period + 1e-6)))]
    if len(times) > budget:
        assert chosen == uniform(frames, budget)
    else:
        shown = [min(frames - 1, math.floor(t * fps)) for t in times]
        # one frame of slack where a time falls on a border, to the last bit
        assert len(chosen) == len(shown)
        assert all(abs(a - b) <= 1 for a, b in zip(chosen, shown, strict=True))
        assert len(set(chosen)) == len(chosen)


def test_at_fps_by_hand():
    assert at_fps(steady(300, 30), target_fps=1, max_frames=99) == [15, 45, 75, 105, 135, 165, 195, 225, 255, 285]
    assert at_fps(steady(300, 30), target_fps=1, max_frames=4) == uniform(300, 4)
    assert at_fps(steady(300, 30), target_fps=2, max_frames=99, start=1.0, end=2.0) == [37, 52]
    assert at_fps(steady(4, 10), target_fps=60, max_frames=99) == [0, 1, 2, 3]
    assert at_fps(steady(9, 30), target_fps=1, max_frames=99) == [8]


def test_choose_frames_reads_what_is_left_out():
    assert choose_frames(steady(300, 30), frames=4) == uniform(300, 4)
    assert choose_frames(steady(300, 30)) == at_fps(steady(300, 30), target_fps=1, max_frames=300)
    assert choose_frames(steady(300, 30), target_fps=2) == at_fps(steady(300, 30), target_fps=2, max_frames=300)
    assert choose_frames(steady(300, 30), frames=5, target_fps=2) == uniform(300, 5)
    assert choose_frames(steady(300, 30), frames=99, target_fps=2, start=1.0, end=2.0) == [37, 52]
    assert choose_frames(steady(300, 30), frames=400) == list(range(300))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dense_clip(steady(0, 30), n=4), "at least one frame"),
        (lambda: dense_clip(steady(10, 0), n=4), "positive number"),
        (lambda: dense_clip(steady(10, math.nan), n=4), "positive number"),
        (lambda: dense_clip(steady(10, 30), n=0), "at least one frame"),
        (lambda: dense_clip(steady(10, 30), n=4, u=1.5), r"\[0, 1\]"),
        (lambda: dense_clip(steady(10, 30), n=4, min_fps=0), "min_fps"),
        (lambda: dense_clip(steady(10, 10), n=4, start=1.0), "beyond the end"),
        (lambda: dense_clip(steady(10, 10), n=4, start=0.5, end=0.5), "no frame"),
        (lambda: uniform(10, 0), "at least one"),
        (lambda: uniform(10, 2, first=5, last=10), "do not lie"),
        (lambda: at_fps(steady(10, 10), target_fps=0, max_frames=4), "target_fps"),
        (lambda: at_fps(steady(10, 10), target_fps=1, max_frames=0), "at least one"),
    ],
)
def test_arguments_out_of_range_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
