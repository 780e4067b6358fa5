"""Reducers that merge, ToMe, PruMerge, UniComp, PruneVid, STTM: the numbers of reducers_ablations.md, section 5."""

import dataclasses

import pytest
import torch
from worlds.toy_video import N, toy_video

from liteframe.reduce import Signals, prumerge, tome
from liteframe.reduce.prumerge import PruMerge, next_free, outliers
from liteframe.reduce.prunevid import PruneVid, find_segments, smoothed
from liteframe.reduce.sttm import STTM, build
from liteframe.reduce.tome import ToMe
from liteframe.reduce.unicomp import UniComp, pass_on


def assert_sums(tokens, total, squares, first=None, last=None):
    assert tokens.sum().item() == pytest.approx(total, abs=2e-6)
    assert tokens.square().sum().item() == pytest.approx(squares, abs=2e-6)
    for row, values in ((0, first), (-1, last)):
        if values is not None:
            assert tokens[row, :3].tolist() == pytest.approx(values, abs=1e-6)


def assert_rows(tokens, rows):
    assert torch.allclose(tokens, torch.tensor(rows, dtype=tokens.dtype), atol=1e-6)


def members(compared, count):
    """What each token is merged of."""
    merged = tome.merge(torch.eye(len(compared), dtype=compared.dtype), compared, count)
    found = [row.nonzero().flatten().tolist() for row in merged.tokens]
    assert merged.first.tolist() == [row[0] for row in found]
    assert merged.size.tolist() == [len(row) for row in found]
    return found


def test_tome_by_hand():
    rows = torch.tensor([[1, 0], [0, 1], [1, 0.1], [1, 0.05], [0, -1], [0.1, 1]])
    assert members(rows, 4) == [[4], [1], [0, 2, 3], [5]]
    assert_rows(tome.merge(rows, rows, 4).tokens, [[0, -1], [0, 1], [1, 0.05], [0.1, 1]])
    assert members(rows, 2) == [[1], [0, 2, 3, 4, 5]]
    assert_rows(tome.merge(rows, rows, 2).tokens, [[0, 1], [0.62, 0.03]])


def test_tome_of_a_frame():
    x, keys = toy_video().tokens[0], toy_video().keys[0]
    assert members(x, 4) == [[3], [7, 14], [1, 4, 5, 8, 10, 11, 13], [0, 2, 6, 9, 12, 15]]
    ends = [-0.939715, 0.872246, -0.966050], [0.271622, -0.108602, -0.828658]
    assert_sums(tome.merge(x, x, 4).tokens, 0.257287, 9.170433, *ends)
    assert members(keys, 4) == [[2, 3, 4, 8, 9, 13, 14], [5, 6, 7, 12], [0, 1, 10, 11], [15]]
    assert_sums(tome.merge(x, keys, 4).tokens, 1.448375, 5.317676)
    reduced = ToMe(metric="keys")(toy_video(), 32)
    assert reduced.place[:4].tolist() == [0, 2, 5, 15]
    assert reduced.size[:4].tolist() == [4, 7, 4, 1]
    with pytest.raises(ValueError, match="metric='saliency'"):
        ToMe(metric="saliency")


def test_tome_of_windows():
    window = toy_video().tokens[:4].flatten(0, 1)
    merged = tome.merge(window, window, 16)
    assert merged.size.tolist() == [6, 6, 6, 9, 1, 5, 1, 8, 1, 2, 2, 7, 1, 1, 7, 1]
    assert_sums(merged.tokens, 6.657953, 45.893303)
    reduced = ToMe(window=4)(toy_video(), 32)
    assert torch.equal(reduced.tokens[:16], merged.tokens[merged.first.argsort()])
    assert (reduced.frame[:16] * N + reduced.place[:16]).tolist() == merged.first.sort().values.tolist()
    assert (reduced.frame[16:] >= 4).all()
    assert len(ToMe(window=0)(toy_video(), 32).tokens) == 32


def test_prumerge_by_hand():
    x = torch.tensor([[1, 0], [0, 1], [1, 1], [2, 0], [0, 3], [-1, 1.0]])
    saliency = torch.tensor([0.3, 0.05, 0.1, 0.25, 0.05, 0.15])
    keys = torch.tensor([[1, 0], [0, 1], [1, 1], [1, 0.2], [0.1, 1], [-1, 0.5]])
    reduced = PruMerge(neighbors=2)(Signals(x[None], (2, 3), saliency[None], keys[None]), 3)
    assert reduced.place.tolist() == [0, 3, -1]
    assert reduced.size.tolist() == [3, 3, 4]
    assert_rows(reduced.tokens, [[1.6, 0.1], [2.4, 0.1], [-0.05, 0.45]])
    with_grid = prumerge.merge(x, saliency, keys, torch.tensor([0, 3, 5]), 2)
    assert_rows(with_grid, [[1.6, 0.1], [2.4, 0.1], [-1, 1.2], [0.1, 0.3]])


def test_prumerge_of_a_frame():
    one = toy_video(frames=1)
    reduced = PruMerge(neighbors=4)(one, 4)
    assert reduced.place.tolist() == [1, 7, 12, -1]
    ends = [0.961922, -0.872938, 0.589336], [-0.014137, 0.060729, -0.083867]
    assert_sums(reduced.tokens, -4.182898, 11.306272, *ends)
    assert reduced.size.tolist() == [5, 5, 5, 13]


def test_prumerge_keeps_outliers():
    signals = toy_video()
    assert [outliers(saliency) for saliency in signals.saliency] == [0, 0, 0, 0, 0, 1, 1, 0]
    assert len(PruMerge(adaptive=True)(signals, 127).tokens) == 16
    # 1 of 16 kept: a grid of step int(16 / 3), without the last place.
    assert PruMerge(adaptive=True, plus=True)(signals, 127).place[:5].tolist() == [1, 0, 5, 10, -1]
    with pytest.raises(ValueError, match="37 tokens stand out, more than the budget of 32"):
        PruMerge(adaptive=True, plus=True)(signals, 32)


def test_prumerge_plus_of_sixteen_tokens():
    """8 salient ones, 7 of a grid and the rest, of 256."""
    saliency = torch.zeros(1, 256)
    saliency[0, [18, 200, 3, 4, 5, 6, 7, 8]] = torch.arange(8, 0, -1.0)
    signals = Signals(torch.ones(1, 256, 2), (16, 16), saliency, torch.ones(1, 256, 2))
    place = PruMerge(plus=True)(signals, 16).place.tolist()
    assert place == [18, 200, 3, 4, 5, 6, 7, 8, 19, 54, 91, 128, 164, 201, 237, -1]
    assert next_free([7, 6], [7], 8) == [0, 6]


@pytest.mark.parametrize(("ratio", "kept"), [(4, 63), (8, 31), (16, 15), (32, 7)])
def test_prumerge_counts(ratio, kept):
    """Section 4: 256 tokens."""
    signals = Signals(torch.ones(1, 256, 2), (16, 16), torch.ones(1, 256), torch.ones(1, 256, 2))
    assert PruMerge()(signals, 256 // ratio).place.tolist() == [*range(kept), -1]
    assert len(PruMerge(plus=True)(signals, 256 // ratio).tokens) == kept + 1
    with pytest.raises(ValueError, match="budget of 1 tokens is less than two for each of 1 frames"):
        PruMerge()(signals, 1)


@pytest.mark.parametrize(
    ("threshold", "counts", "starts", "total", "squares"),
    [
        (0.005, [2, 3, 2, 2, 2, 8, 5, 4], range(8), -15.923029, 60.055449),
        (0.11, [5, 6, 5, 6, 8], [0, 1, 3, 4, 5], 1.167203, 67.893339),
    ],
)
def test_unicomp(threshold, counts, starts, total, squares):
    reduced = UniComp(frame_threshold=threshold)(toy_video(), 32)
    assert [count for _, _, count in reduced.slots] == counts
    assert [begin for begin, _, _ in reduced.slots] == list(starts)
    assert reduced.slots[-1][1] == 7
    assert_sums(reduced.tokens, total, squares, first=[0.695973, 0.168317, -0.483379])


def test_unicomp_of_frames_that_repeat():
    one = toy_video(frames=1)
    still = Signals(
        one.tokens.repeat(8, 1, 1), one.grid, None, one.keys.repeat(8, 1, 1), one.glob.repeat(8, 1)
    )  # fmt: skip
    reduced = UniComp()(still, 17)  # groups of at most 1 + int(128 / 17) frames, so one, which fits
    assert reduced.slots == [(0, 7, 16)]
    assert torch.allclose(reduced.tokens, one.tokens[0], atol=1e-12)
    assert (reduced.size == 8).all()
    assert [slot[:2] for slot in UniComp()(still, 64).slots] == [(0, 2), (3, 5), (6, 7)]


def test_shares_that_are_not_used_go_to_others():
    assert pass_on([4, 4, 4], [1, 9, 9]) == [1, 5, 5]
    assert pass_on([4, 4, 4], [1, 5, 5]) == [4, 4, 4]  # all that was picked fits


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("00100022", "00000022"),
        ("0101", "0000"),
        ("0011001", "0011000"),
        ("22100111", "22200111"),
        ("012210", "222222"),
    ],
)
def test_prunevid_smooths_labels(labels, expected):
    assert smoothed([int(label) for label in labels]) == [int(label) for label in expected]


@pytest.mark.parametrize(
    ("threshold", "counts", "total", "squares", "first"),
    [
        (0.8, [8, 8, 1, 1], 1.839722, 38.751036, None),
        (0.93, [16, 4, 4, 4, 4, 16, 7, 7], 31.579260, 189.623275, [0.858720, 0.054132, -0.903938]),
    ],
)
def test_prunevid(threshold, counts, total, squares, first):
    signals = toy_video()
    assert find_segments(signals.tokens.mean(1), 0.25) == [range(5), range(5, 8)]
    reduced = PruneVid(threshold=threshold, cluster_ratio=0.5)(signals, 127)
    assert [count for _, _, count in reduced.slots] == counts
    assert_sums(reduced.tokens, total, squares, first)
    assert reduced.size.sum() == signals.count
    with pytest.raises(ValueError, match=f"{sum(counts)} tokens, more than the budget of 17"):
        PruneVid(threshold=threshold, cluster_ratio=0.5)(signals, 17)


def test_prunevid_by_a_budget():
    signals = toy_video()  # sets of 16, 15 and three times 1 token
    assert [count for _, _, count in PruneVid()(signals, 17).slots] == [8, 7 + 1, 1, 1]
    assert len(PruneVid()(signals, 100).tokens) == 34
    single = toy_video(frames=1)  # nothing to stand still against
    assert PruneVid()(single, 8).size.sum() == N


def test_sttm_by_hand():
    x = torch.zeros(2, N, 2)
    x[..., 0] = 1
    x[:, [3, 7], 1] = 2
    x[1, 15] = torch.tensor([0, 1.0])
    signals = Signals(x, (4, 4))
    assert len(build(signals.features, 0).boxes(0.9).level) == 17
    reduced = STTM(spatial=0.9, temporal=0.95, root=0)(signals, 31)
    assert reduced.place.tolist() == [0, 2, 3, 6, 7, 8, 10, 15]
    assert reduced.frame.tolist() == [0] * 7 + [1]
    assert reduced.size.tolist() == [8, 2, 2, 2, 2, 8, 7, 1]
    assert_rows(reduced.tokens, [[1, 0], [1, 0], [1, 2], [1, 0], [1, 2], [1, 0], [1, 0], [0, 1]])


@pytest.mark.parametrize(
    ("settings", "count", "total", "squares"),
    [((0.85, 0.65, 1), 31, 4.473492, 93.646609), ((0.6, 0.9, 0), 49, 18.085453, 134.184142)],
)
def test_sttm(settings, count, total, squares):
    signals = toy_video()
    assert len(build(signals.features, settings[2]).boxes(settings[0]).level) == signals.count
    reduced = STTM(*settings)(signals, 127)
    assert len(reduced.tokens) == count
    assert reduced.size.sum() == signals.count
    assert_sums(reduced.tokens, total, squares)
    with pytest.raises(
        ValueError, match=f"leaves {count} tokens at these thresholds, more than the budget of {count - 1}"
    ):
        STTM(*settings)(signals, count - 1)


def test_sttm_meets_a_budget():
    generator = torch.Generator().manual_seed(0)
    scene = torch.eye(16).view(4, 4, 16)  # boxes of 4x4 cells
    features = scene.repeat_interleave(4, 0).repeat_interleave(4, 1).expand(6, -1, -1, -1)
    noisy = features + 0.3 * torch.randn(features.shape, generator=generator)
    signals = Signals(noisy.flatten(1, 2), (16, 16))
    for budget in (768, 192, 96, 40, 16):
        assert len(STTM()(signals, budget).tokens) == budget
    alike = dataclasses.replace(signals, tokens=features.flatten(1, 2))
    assert len(STTM()(alike, 96).tokens) == 96
    assert len(STTM()(alike, 95).tokens) == 16  # equal cosines are joined all or none


def test_sttm_at_odd_sides():
    tree = build(torch.randn(3, 7, 5, 2), 0)
    assert [tuple(level.shape[:2]) for level in tree.levels] == [(3, 35), (3, 12), (3, 4)]
    assert tree.box[1].view(7, 5)[:, 0].tolist() == [0, 3, 3, 6, 6, 9, 9]
    assert tree.box[2].view(7, 5)[6].tolist() == [2, 3, 3, 3, 3]
    mean = tree.levels[0][0].view(7, 5, 2)[1:3, 1:3].mean((0, 1))
    assert torch.allclose(tree.levels[1][0, 4], mean, atol=1e-6)
