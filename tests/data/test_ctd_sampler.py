from collections import Counter

import numpy as np
import pytest

from liteframe.data.stream import BucketedStream, ClipStream, FirstClips, FixedBatches


def take(stream, count):
    return [key for number in range(count) for key in stream.batch(number)]


@pytest.mark.parametrize(("videos", "batch"), [(10, 4), (3, 16), (7, 7), (1, 2)])
def test_every_epoch_holds_each_video_once(videos, batch):
    keys = take(ClipStream(videos, batch, 5, seed=1), 30)
    assert len(set(keys)) == len(keys)
    whole = len(keys) // videos
    counts = Counter(epoch for epoch, _ in keys)
    for epoch in range(whole):
        assert counts[epoch] == videos
        assert {index for e, index in keys if e == epoch} == set(range(videos))


def test_order_is_that_of_seed_and_epoch():
    keys = take(ClipStream(50, 10, 5, seed=3), 10)
    for epoch in range(2):
        expected = np.random.default_rng([3, epoch]).permutation(50).tolist()
        assert [index for e, index in keys if e == epoch] == expected
    assert take(ClipStream(50, 10, 5, seed=4), 10) != keys


def test_resumed_stream_continues():
    done = 0
    stream = ClipStream(7, 3, 4, seed=0, position=lambda: done)
    assert len(stream) == 4
    full = list(stream) + [stream.batch(number) for number in range(4, 8)]
    done = 6
    resumed = list(ClipStream(7, 3, 4, seed=0, position=lambda: done))
    assert resumed == full[6:8]
    done = 4
    assert list(stream) == full[4:8]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_stream_of_one_process(world):
    alone = take(ClipStream(11, 6, 3, seed=5), 6)
    parts = [ClipStream(11, 6 // world, 3, seed=5, rank=rank, world_size=world) for rank in range(world)]
    together = [key for number in range(6) for part in parts for key in part.batch(number)]
    assert together == alone


def test_fixed_batches_cover_all_once():
    for videos, batches in [(7, 2), (9, 3), (1, 1)]:
        parts = [FixedBatches([None] * videos, 2, rank=rank, world_size=2) for rank in range(2)]
        assert sorted(index for part in parts for batch in part for _, index in batch) == list(range(videos))
        # A rank that ends early would leave the others waiting.
        assert [len(part) for part in parts] == [len(list(part)) for part in parts] == [batches] * 2


def test_bad_arguments():
    with pytest.raises(ValueError, match="videos=0"):
        ClipStream(0, 1, 1)
    with pytest.raises(ValueError, match="rank=2"):
        ClipStream(1, 1, 1, rank=2, world_size=2)


@pytest.mark.parametrize(("batch", "world"), [(4, 1), (2, 2), (3, 2), (8, 1)])
def test_first_clips_do_not_depend_on_how_they_are_cut(batch, world):
    """Statistics of one device are those of many, and those of a cache."""
    parts = [FirstClips(ClipStream(11, batch, 1, seed=5, rank=rank, world_size=world), 6) for rank in range(world)]
    assert {len(list(part)) for part in parts} == {len(part) for part in parts} == {-(-6 // (batch * world))}
    together = [key for number in zip(*parts, strict=True) for rank in number for key in rank]
    assert together == ClipStream(11, 6, 1, seed=5).batch(0)


BUCKETS = [size for size, videos in (("wide", 13), ("tall", 5), ("film", 1)) for _ in range(videos)]


def bucketed(batch=8, **place):
    return BucketedStream(BUCKETS, batch, 5, step=8, seed=1, **place)


def test_steps_of_one_bucket_show_every_video_equally_often():
    keys = take(bucketed(), 19 * 4)  # 32 epochs of 19 videos
    steps = [keys[first : first + 8] for first in range(0, len(keys), 8)]
    assert all(len({BUCKETS[index] for _, index in step}) == 1 for step in steps)
    assert len(set(keys)) == len(keys)
    assert set(Counter(index for _, index in keys).values()) == {32}
    # At any moment a bucket has had its share but for less than a step.
    for bucket, share in (("wide", 13 / 19), ("tall", 5 / 19), ("film", 1 / 19)):
        had = np.cumsum([BUCKETS[step[0][1]] == bucket for step in steps])
        assert np.abs(had - share * np.arange(1, len(steps) + 1)).max() < 2


def test_bucketed_steps_do_not_depend_on_how_they_are_cut_or_where_they_begin():
    alone = take(bucketed(), 12)
    assert take(bucketed(batch=2), 48) == alone
    parts = [bucketed(batch=4, rank=rank, world_size=2) for rank in range(2)]
    assert [key for number in range(12) for part in parts for key in part.batch(number)] == alone
    assert [key for batch in bucketed(position=lambda: 7) for key in batch] == alone[7 * 8 : 10 * 8]
    first = FirstClips(bucketed(batch=2), 11)
    assert [key for batch in first for key in batch] == alone[:11]


def test_one_bucket_is_the_plain_stream():
    assert take(BucketedStream(["one"] * 11, 3, 5, step=6, seed=5), 30) == take(ClipStream(11, 3, 5, seed=5), 30)


def test_fixed_batches_of_buckets():
    parts = [list(FixedBatches(BUCKETS, 2, rank=rank, world_size=2)) for rank in range(2)]
    assert len(parts[0]) == len(parts[1]) == 4 + 2 + 1
    assert sorted(index for part in parts for batch in part for _, index in batch) == list(range(19))
    assert all(len({BUCKETS[index] for _, index in batch}) <= 1 for part in parts for batch in part)
