"""Readings, frontier and paired differences of points made by hand."""

import math

import numpy as np
import pytest

from liteframe.compare.points import Point, as_json, frontier, reading
from liteframe.compare.systems import SystemName
from liteframe.evaluate.intervals import paired_difference, share

NONE, FAST, STUDENT = SystemName("none"), SystemName("none", "evs", 0.25), SystemName("liteframe")


def point(system, frames, ms, tokens, right):
    videos = [f"v{number // 2}" for number in range(len(right))]
    times = None if ms is None else {"total": ms}
    by_id = {str(number): bool(good) for number, good in enumerate(right)}
    return Point(system, frames, share(list(by_id.values()), videos), by_id, videos, tokens=tokens, times=times)


POINTS = [
    point(NONE, 8, 10.0, 128, (1, 0, 1, 0)),
    point(NONE, 16, 20.0, 256, (1, 1, 1, 0)),
    point(FAST, 8, 9.0, 32, (1, 0, 0, 0)),
    point(FAST, 16, 18.0, 64, (1, 1, 1, 0)),
    point(STUDENT, 16, 4.0, 16, (0, 1, 1, 0)),
    point(STUDENT, 32, 8.0, 32, (1, 1, 1, 1)),
    Point(FAST, 32, failed="too long"),
]


def shown(points):
    return [(str(p.system), p.frames) for p in points]


def test_equal_cost_takes_the_most_frames_that_it_buys():
    at_8, at_16 = POINTS[0], POINTS[1]
    assert shown(reading(POINTS, at_8, "frames")) == [("none", 8), ("evs@0.25", 8)]
    assert shown(reading(POINTS, at_8, "tokens")) == [("none", 8), ("evs@0.25", 16), ("liteframe", 32)]
    assert shown(reading(POINTS, at_8, "time")) == [("none", 8), ("evs@0.25", 8), ("liteframe", 32)]
    assert shown(reading(POINTS, at_16, "time")) == [("none", 16), ("evs@0.25", 16), ("liteframe", 32)]


def test_the_frontier_is_what_no_other_beats():
    assert shown(frontier(POINTS)) == [("liteframe", 16), ("liteframe", 32)]
    assert shown(frontier(POINTS[:4])) == [("evs@0.25", 8), ("none", 8), ("evs@0.25", 16)]


def test_json_has_differences_where_frames_are_equal():
    found = as_json(POINTS, [8, 16, 32])
    rows = {(row["system"], row["frames"]): row for row in found["points"]}
    assert rows["liteframe", 16]["against none, 16 frames"]["difference"] == -0.25
    assert not [key for key in rows["liteframe", 32] if key.startswith("against none")]
    assert rows["evs@0.25", 32]["failed"] == "too long"
    assert [row["as none at"] for row in found["readings"]["time"]] == [8, 16]
    assert found["readings"]["time"][0]["points"][2]["difference"] == 0.5


def test_a_paired_difference_by_hand():
    # By video: 1/2, 1, -1/2 more right answers a question; mean 1/3, deviations 1/6, 2/3, -5/6.
    ours, theirs = (1, 1, 1, 1, 0, 1), (1, 0, 0, 0, 1, 1)
    found = paired_difference([*map(bool, ours)], [*map(bool, theirs)], [0, 0, 1, 1, 2, 2])
    assert found.difference == pytest.approx(1 / 3)
    assert found.standard_error == pytest.approx(math.sqrt((1 + 16 + 25) / 36 / 2 / 3))
    assert found.high - found.low == pytest.approx(2 * 1.959963984540054 * found.standard_error)
    assert (found.count, found.videos) == (6, 3)
    assert math.isnan(paired_difference([True], [False], [0]).standard_error)
    with pytest.raises(ValueError, match="2 and 1 results in 2 clusters"):
        paired_difference([True, True], [True], [0, 1])


def test_its_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(800):
        sizes = rng.integers(1, 6, size=60)
        skill = np.repeat(rng.beta(3, 1.5, size=60), sizes)
        gain = np.repeat(rng.uniform(-0.1, 0.1, size=60), sizes)  # of a video: 0 on average
        ours, theirs = (rng.random(len(skill)) < np.clip(skill + sign * gain, 0, 1) for sign in (1, -1))
        found = paired_difference(ours.tolist(), theirs.tolist(), np.repeat(np.arange(60), sizes).tolist())
        hits.append(found.low <= 0 <= found.high)
    assert 0.92 <= np.mean(hits) <= 0.975
