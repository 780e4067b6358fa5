"""Reducers that keep tokens as they are, V-CAST, VidCom2, EVS, DyCoke: numbers of reducers_ablations.md, section 5."""

import pytest
import torch
from worlds.toy_video import F, N, toy_video

from liteframe.reduce import Signals
from liteframe.reduce.dycoke import DyCoke, pooled
from liteframe.reduce.evs import EVS
from liteframe.reduce.vcast import VCast, curvature, share_out
from liteframe.reduce.vidcom2 import VidCom2, typicality


def by_frame(reduced):
    return [reduced.place[reduced.frame == frame].tolist() for frame in range(F)]


def assert_sums(reduced, total, squares):
    assert reduced.tokens.sum().item() == pytest.approx(total, abs=2e-6)
    assert reduced.tokens.square().sum().item() == pytest.approx(squares, abs=2e-6)
    assert (reduced.size == 1).all()


def test_vidcom2():
    to_video, to_frame = typicality(toy_video().tokens)
    assert to_video[0, :3].tolist() == pytest.approx([2.046248, 1.963482, 1.828532], abs=1e-6)
    assert to_frame[0, :3].tolist() == pytest.approx([2.030525, 2.065697, 1.844821], abs=1e-6)
    reduced = VidCom2()(toy_video(), 32)
    assert by_frame(reduced) == [
        [3, 8, 12, 13], [2, 8, 12, 13], [3, 8, 12, 13], [3, 8, 12, 13], [2, 8, 12, 13],
        [0, 1, 9, 10], [0, 9, 10, 11], [0, 1, 9, 10, 11],
    ]  # fmt: skip
    assert_sums(reduced, -31.322760, 117.423546)


def test_vcast():
    reduced = VCast()(toy_video(), 32)
    assert by_frame(reduced) == [
        [3, 12], [3, 4, 7, 8, 12], [3, 8, 12], [3, 4, 5, 7, 8, 12, 13, 14], [3, 4, 8, 12],
        [5, 7, 11, 12], [2, 5, 10, 11], [7, 12],
    ]  # fmt: skip
    assert_sums(reduced, -33.773296, 129.960240)
    assert [count for _, _, count in VCast()(toy_video(), 64).slots] == [5, 13, 7, 10, 8, 8, 8, 5]
    assert [count for _, _, count in VCast()(toy_video(), 3).slots] == [1] * F


def test_curvature_of_a_path():
    means = toy_video().glob
    found = curvature(means / means.norm(dim=1, keepdim=True))
    expected = [1, 1.608656, 1.223136, 1.523067, 1.351247, 1.337148, 1.347715, 1]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    weights = [0.078210, 0.186589, 0.107573, 0.165114, 0.129177, 0.126601, 0.128527, 0.078210]
    assert (found / 0.7).softmax(0).tolist() == pytest.approx(weights, abs=1e-6)
    assert [curvature(means[:frames]).tolist() for frames in (1, 2)] == [[1], [1, 1]]


@pytest.mark.parametrize(
    ("weights", "total", "most", "expected"),
    [
        ([1 / 3] * 3, 12, 9, [4, 4, 4]),  # no rounding of thirds
        ([0.5, 0.3, 0.2], 6, 9, [2, 3, 1]),  # 1 + 1.5, 0.9, 0.6: two are left
        ([0.5, 0.3, 0.2], 6, 2, [2, 2, 2]),
        ([0.5, 0.5], 5, 9, [3, 2]),
        ([0.9, 0.1], 8, 4, [4, 4]),
    ],
)
def test_shares_are_whole_and_sum_up(weights, total, most, expected):
    assert share_out(weights, total, most) == expected


def test_evs():
    reduced = EVS()(toy_video(), 32)
    assert by_frame(reduced) == [list(range(N)), [], [], [], [], [i for i in range(N) if i != 3], [], [4]]
    assert_sums(reduced, 4.411224, 99.513469)
    assert EVS()(toy_video(), 9).frame.tolist() == N * [0]


def test_dycoke():
    reduced = DyCoke()(toy_video(), 56)
    assert [count for _, _, count in reduced.slots] == [16, 4, 4, 4, 16, 4, 4, 4]
    assert by_frame(reduced)[1:3] == [[2, 11, 14, 5], [2, 11, 8, 5]]
    assert_sums(reduced, 18.657596, 174.161900)
    released = DyCoke(released=True)(toy_video(), 68)
    assert [count for _, _, count in released.slots] == [16, 4, 4, 4, 16, 4, 16, 4]
    assert_sums(released, 22.089756, 210.741968)
    odd = DyCoke(released=True)(toy_video(frames=7), 68)
    assert [begin for begin, _, _ in odd.slots] == list(range(6))


@pytest.mark.parametrize(
    ("prune_rate", "share", "released"), [(0.7, 0.473, 0.495), (0.925, 0.306, 0.335), (1, 0.25, 0.281)]
)
def test_dycoke_counts(prune_rate, share, released):
    """Section 4: 32 frames of 256 tokens."""
    signals, keep = Signals(torch.zeros(32, 256, 1), (16, 16)), int((1 - prune_rate) * 256)
    for reducer, whole, expected in ((DyCoke(), 8, share), (DyCoke(released=True), 9, released)):
        count = len(reducer(signals, whole * 256 + (32 - whole) * keep).tokens)
        assert count == whole * 256 + (32 - whole) * keep
        assert count / 8192 == pytest.approx(expected, abs=5e-4)
    with pytest.raises(ValueError, match="8 frames whole, 2048 tokens, more than the budget of 512"):
        DyCoke()(signals, 512)
    pooled_first = DyCoke(group=8, pool=2)(signals, 512)
    assert [count for _, _, count in pooled_first.slots[:9]] == [64, *[9] * 7, 64]
    assert (pooled_first.size == 4).all()


def test_dycoke_compares_with_an_earlier_frame_of_the_group():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(8, 4, 3, generator=generator)
    for frame, reference in enumerate([0, 0, 0, 2, 0, 4, 4, 6]):
        if frame:
            tokens[frame, 1:] = tokens[reference, 1:]  # so that place 0 is what differs
    reduced = DyCoke(group=8)(Signals(tokens, (2, 2)), 4 + 7)
    assert by_frame(reduced) == [[0, 1, 2, 3], *[[0]] * 7]


def test_pooling_at_an_edge():
    means, place, size = pooled(torch.arange(15.0).view(1, 3, 5, 1), 2)
    assert means.flatten().tolist() == [3, 5, 6.5, 10.5, 12.5, 14]
    assert place.tolist() == [0, 2, 4, 10, 12, 14]
    assert size.tolist() == [4, 4, 2, 2, 2, 1]


@pytest.mark.parametrize("settings", [{"group": 6}, {"group": 1}, {"pool": 0}, {"group": 8, "released": True}])
def test_dycoke_without_a_rule(settings):
    with pytest.raises(ValueError, match="power of two"):
        DyCoke(**settings)
