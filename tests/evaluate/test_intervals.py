"""Confidence intervals: known values, coverage by simulation, and a bootstrap over videos."""

import numpy as np
import pytest

from liteframe.evaluate.intervals import Share, mean_share, share, wilson


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (263, 2700, 0.0868, 0.1091)],
)
def test_wilson_known_values(right, count, low, high):
    assert wilson(right / count, count) == pytest.approx((low, high), abs=2e-4)


def test_one_question_a_video_is_plain_wilson():
    right = [True] * 8 + [False] * 2
    found = share(right, range(10))
    assert (found.low, found.high) == wilson(0.8, 10)
    assert (found.count, found.videos, found.accuracy) == (10, 10, 0.8)


def test_copies_of_one_answer_tell_no_more_than_one():
    """Ten videos whose eight questions are answered alike are worth about ten questions, not eighty."""
    right = [n < 7 for n in range(10) for _ in range(8)]
    found = share(right, [n for n in range(10) for _ in range(8)])
    low, high = wilson(0.7, 9)  # the unbiased variance of ten means
    assert (found.low, found.high) == pytest.approx((low, high))
    all_right = share([True] * 80, [n for n in range(10) for _ in range(8)])
    assert (all_right.low, all_right.high) == wilson(1.0, 10)


def test_interval_of_clusters_is_near_a_bootstrap_over_videos():
    rng = np.random.default_rng(0)
    skill = rng.beta(2, 1, size=200)
    right = rng.random((200, 3)) < skill[:, None]
    found = share(right.ravel().tolist(), np.repeat(np.arange(200), 3).tolist())
    means = right.mean(1)
    resampled = means[rng.integers(0, 200, (4000, 200))].mean(1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.006)


@pytest.mark.parametrize("each", [1, 4])
def test_covers_the_truth_as_often_as_it_says(each):
    rng = np.random.default_rng(1)
    hits = []
    for _ in range(1500):
        skill = rng.beta(3, 1.5, size=60)  # mean 2/3
        right = rng.random((60, each)) < skill[:, None]
        found = share(right.ravel().tolist(), np.repeat(np.arange(60), each).tolist())
        hits.append(found.low <= 2 / 3 <= found.high)
    assert 0.93 <= np.mean(hits) <= 0.975


def test_mean_of_tasks():
    equal = [Share(0.5, 0.4, 0.6, 100, 100)] * 4
    found = mean_share(equal)
    assert (found.accuracy, found.low, found.high) == pytest.approx((0.5, 0.45, 0.55))  # a half of one task's width
    assert (found.count, found.videos) == (400, 400)
    uneven = mean_share([Share(1.0, 0.9, 1.0, 2, 2), Share(0.0, 0.0, 0.2, 8, 8)])
    assert (uneven.accuracy, uneven.low, uneven.high) == pytest.approx((0.5, 0.45, 0.6))


def test_refusals():
    with pytest.raises(ValueError, match="at least one"):
        share([], [])
    with pytest.raises(ValueError, match="2 results in 1 clusters"):
        share([True, False], [1])
    with pytest.raises(ValueError, match="no accuracies"):
        mean_share([])
