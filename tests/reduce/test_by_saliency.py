"""VisionZip, FastVID, HoliTom and FlashVID against the numbers of reducers_ablations.md, sections 4 and 5."""

import dataclasses

import pytest
import torch
from worlds.toy_video import toy_video

from liteframe import reducers
from liteframe.reduce import Signals
from liteframe.reduce.fastvid import FastVID
from liteframe.reduce.flashvid import FlashVID, diverse
from liteframe.reduce.holitom import HoliTom, still_windows
from liteframe.reduce.selection import segments
from liteframe.reduce.visionzip import VisionZip


def video(tokens, saliency=None, keys=None, glob=None):
    """Signals of frames of a few tokens, in float64."""
    tokens = torch.tensor(tokens, dtype=torch.float64)
    given = (None if x is None else torch.tensor(x, dtype=torch.float64) for x in (saliency, keys, glob))
    return Signals(tokens, (1, tokens.shape[1]), *given)


def where(reduced):
    return " ".join(f"{f}:{p}" for f, p in zip(reduced.frame.tolist(), reduced.place.tolist(), strict=True))


def agrees(reduced, count, total, squares, first=None, last=None):
    """Number, sum and sum of squares of all output values, and the first three of the first and the last token."""
    tokens = reduced.tokens
    assert len(tokens) == count
    found = [tokens.sum().item(), tokens.square().sum().item()]
    assert found == pytest.approx([total, squares], abs=2e-6)
    if first is not None:
        assert tokens[0, :3].tolist() == pytest.approx(first, abs=1e-6)
    if last is not None:
        assert tokens[-1, :3].tolist() == pytest.approx(last, abs=1e-6)


def test_visionzip_by_hand():
    x = [[(1, 0), (0, 1), (1, 1), (2, 0), (0, 3), (-1, 1)]]
    saliency = [[0.3, 0.05, 0.1, 0.25, 0.05, 0.15]]
    keys = [[(1, 0), (0, 1), (1, 1), (1, 0.2), (0.1, 1), (-1, 0.5)]]
    reduced = VisionZip(dominant=0.5)(video(x, saliency, keys), 4)
    assert reduced.place.tolist() == [0, 3, 1, 4]
    assert reduced.tokens.tolist() == [[1, 0], [2, 0], [-1, 2], [1, 4]]
    assert reduced.size.tolist() == [1, 1, 2, 2]


def test_visionzip_on_the_toy_video():
    reduced = VisionZip(dominant=0.6)(toy_video(), 40)
    first = dataclasses.replace(
        reduced, tokens=reduced.tokens[:5], frame=reduced.frame[:5], place=reduced.place[:5], size=reduced.size[:5],
        slots=reduced.slots[:1],
    )  # fmt: skip
    assert first.place.tolist() == [1, 7, 12, 0, 8]
    agrees(first, 5, -3.026895, 19.157869, last=[-0.762142, -0.391686, -0.012444])


def test_visionzip_with_fewer_tokens_than_targets():
    reduced = VisionZip(dominant=0)(toy_video(), 8 * 15)
    assert where(reduced) == " ".join(f"{f}:{p}" for f in range(8) for p in range(15))  # the last joins another


def fastvid_pair():
    steps = [(0, 0.1, 0.25, 1, 1.1, 3), (0.05, 0.12, 0.3, 0.9, 1.2, 2.8)]
    tokens = [[(1 + value, 1) for value in frame] for frame in steps]
    return video(tokens, [(0.1, 0.1, 0.1, 0.1, 0.1, 0.5), (0.1, 0.1, 0.1, 0.4, 0.1, 0.2)], glob=[(1.0, 0), (1.0, 0)])


@pytest.mark.parametrize(
    ("form", "values"), [("ov", [4, 1.099, 1.29, 1.9, 2.16, 3.8]), ("video", [4, 1.092, 1.28, 1.9, 2.14, 3.8])]
)
def test_fastvid_by_hand(form, values):
    reduced = FastVID(form, context=0.67, min_segments=1, threshold=0.5)(fastvid_pair(), 6)
    assert where(reduced) == "0:5 1:1 1:2 1:3 1:4 1:5"
    assert reduced.tokens[:, 0].tolist() == pytest.approx(values)
    assert reduced.size.sum().item() == pytest.approx(12)


FASTVID_PLACES = {
    2: (
        "0:1 0:2 0:7 0:11 0:12 1:1 1:6 1:12 2:0 2:6 2:12 3:0 3:6 3:12 4:0 4:2 4:5 4:6 4:11 5:0 5:5 5:11 6:0 6:5 6:11 "
        "7:3 7:4 7:5 7:8 7:10 7:11"
    ),
    3: (
        "0:1 0:2 0:7 0:12 1:1 1:6 1:10 1:12 2:0 2:6 2:12 3:0 3:1 3:2 3:6 3:12 4:0 4:2 4:6 4:11 5:0 5:5 5:11 6:0 6:5 "
        "6:11 7:3 7:4 7:5 7:8 7:10 7:11"
    ),
}


@pytest.mark.parametrize(
    ("form", "least", "threshold", "lengths", "count", "total", "squares"),
    [
        ("ov", 2, 0.5, [5, 3], 31, -14.556973, 100.072867),
        ("video", 2, 0.5, [5, 3], 32, -8.187758, 99.276346),
        ("ov", 3, 0.9, [1, 1, 2, 1, 3], 32, -16.441316, 100.056690),
        ("video", 3, 0.9, [1, 1, 2, 1, 3], 32, -8.567131, 96.409514),
    ],
)
def test_fastvid_on_the_toy_video(form, least, threshold, lengths, count, total, squares):
    reducer, signals = FastVID(form, least, threshold), toy_video()
    assert [len(segment) for segment in reducer.segments(signals)] == lengths
    reduced = reducer(signals, 32)
    agrees(reduced, count, total, squares)
    if form == "ov":
        assert where(reduced) == FASTVID_PLACES[least]


@pytest.mark.parametrize(
    ("n", "budget", "salient", "context"),
    [
        *[(256, 64, 39, 25), (256, 32, 20, 12), (256, 16, 10, 6), (256, 8, 5, 3)],
        *[(196, 49, 30, 19), (196, 24, 15, 9), (196, 12, 8, 4), (196, 6, 4, 2)],
    ],
)
def test_counts_of_fastvid(n, budget, salient, context):
    assert FastVID()._counts(budget, 4, 1) == ([salient] * 4, [4 * context])
    assert FastVID()._counts(budget, 5, 2) == ([salient] * 5, [5 * context // 2] * 2)
    salient_of_frame, centers = FastVID("video")._counts(budget, 5, 2)
    assert sum(salient_of_frame) + sum(centers) == 5 * budget
    assert len(reducers["fastvid"](one_frame(n), budget).tokens) == budget


def one_frame(n):
    """Of tokens that are there three times, so that none makes a cluster by itself."""
    generator = torch.Generator().manual_seed(0)
    saliency = torch.rand(1, n, generator=generator)
    tokens = torch.randn(1, n // 3, 4, generator=generator)[:, torch.arange(n) % (n // 3)]
    return Signals(tokens, (1, n), saliency / saliency.sum(), torch.randn(1, n, 4, generator=generator), tokens.mean(1))


@pytest.mark.parametrize(("name", "n", "budget", "untouched", "merged"), [
    ("visionzip", 256, 64, 54, 10), ("visionzip", 256, 32, 27, 5), ("visionzip", 256, 16, 13, 3),
    ("visionzip", 256, 8, 6, 2), ("visionzip", 196, 49, 41, 8), ("visionzip", 196, 24, 20, 4),
    ("visionzip", 196, 12, 10, 2), ("visionzip", 196, 6, 5, 1),
    ("flashvid", 256, 64, 45, 19), ("flashvid", 256, 32, 23, 9), ("flashvid", 256, 16, 12, 4),
    ("flashvid", 256, 8, 6, 2), ("flashvid", 196, 49, 35, 14), ("flashvid", 196, 24.5, 18, 7),
    ("flashvid", 196, 12.25, 10, 3), ("flashvid", 196, 6.125, 5, 2),
    ("holitom", 256, 64, 64, 0), ("holitom", 256, 32, 32, 0), ("holitom", 256, 16, 16, 0), ("holitom", 256, 8, 8, 0),
])  # fmt: skip
def test_counts_a_frame(name, n, budget, untouched, merged):
    signals = one_frame(n)
    if not float(budget).is_integer():  # a fraction of a token a frame needs several frames; all equal
        signals = Signals(*(x.repeat(8, *[1] * (x.ndim - 1)) if isinstance(x, torch.Tensor) else x for x in (
            signals.tokens, signals.grid, signals.saliency, signals.keys, signals.glob
        )))  # fmt: skip
    frames = len(signals.tokens)
    reduced = reducers[name](signals, int(budget * frames))
    assert len(reduced.tokens) == frames * (untouched + merged)
    assert ((reduced.size > 1).sum(), (reduced.size == 1).sum()) == (frames * merged, frames * untouched)


@pytest.mark.parametrize(
    ("rows", "windows", "saved"),
    [
        ([(0.9, 0.9, 0.2), (0.9, 0.5, 0.9), (0.9, 0.9, 0.9)], [(0, 1), (2, 3)], 5),
        ([(0.9, 0.9, 0.2), (0.1, 0.5, 0.9), (0.9, 0.9, 0.9), (0.9, 0.1, 0.9)], [(0, 1), (2, 4)], 6),
    ],
)
def test_windows_of_holitom(rows, windows, saved):
    # Angles that turn from frame to frame by what has this cosine.
    angles = torch.cat([torch.zeros(1, 3), torch.tensor(rows, dtype=torch.float64).arccos().cumsum(0)])
    x = torch.stack([angles.cos(), angles.sin()], -1)
    found, total = still_windows(x, 0.8)
    assert [(window.start, window.stop - 1) for window in found] == windows
    assert total == saved


def every_cut(frames):
    """All ways to cut a video into windows."""
    if not frames:
        yield []
        return
    for length in range(1, frames + 1):
        for before in every_cut(frames - length):
            yield [*before, range(frames - length, frames)]


def test_no_other_windows_save_more():
    x = torch.randn(7, 12, 2, generator=torch.Generator().manual_seed(3))
    still = torch.cosine_similarity(x[:-1], x[1:], dim=-1) > 0.1

    def saved(windows):
        return sum((len(w) - 1) * int(still[w.start : w.stop - 1].all(0).sum()) for w in windows if len(w) > 1)

    windows, total = still_windows(x, 0.1)
    assert saved(windows) == total == max(map(saved, every_cut(7)))
    assert total > 0
    assert max(len(window) for window in still_windows(x, 0.1, longest=2)[0]) == 2


def test_holitom_on_the_toy_video():
    signals = toy_video()
    windows, saved = still_windows(signals.tokens, 0.93)
    assert (windows, saved) == ([range(0, 5), range(5, 8)], 62)
    reduced = HoliTom(threshold=0.93)(signals, 32)
    agrees(reduced, 36, 26.280557, 83.257146, first=[-0.394853, -0.570512, 0.066047])
    first, second = [4, 6, 7, 13, 15, 2, 8, 11], [0, 6, 9, 13, 4, 7, 11, 15]
    assert reduced.place.tolist() == [*first, *[2, 5, 11] * 4, *second, 4, 7, 11, 15, 4, 11, 14, 15]
    assert still_windows(signals.tokens, 0.8)[1] == 90
    agrees(HoliTom()(signals, 32), 34, -2.462639, 93.855923)


def test_flashvid_selects_the_diverse():
    x = torch.tensor([[(1, 0), (0, 1), (1, 0.2), (-1, 0), (0.7, 0.7)]], dtype=torch.float64)
    saliency = torch.tensor([[0.4, 0.2, 0.2, 0.1, 0.1]], dtype=torch.float64)
    assert sorted(diverse(x, saliency, 2)[0].tolist()) == [0, 3]
    assert sorted(diverse(x, saliency, 3)[0].tolist()) == [0, 1, 3]
    signals = toy_video()
    assert diverse(signals.tokens, signals.saliency, 3).sort(1).values.tolist() == [
        [1, 7, 12], [1, 6, 12], [1, 6, 12], [6, 11, 12], [0, 11, 12], [0, 5, 11], [0, 5, 11], [5, 10, 11],
    ]  # fmt: skip
    weight = signals.saliency * (signals.tokens @ signals.tokens.mean(1).T).mean(2)
    assert diverse(signals.tokens, weight, 3).sort(1).values.tolist() == [
        *[[1, 6, 11]] * 4, [0, 5, 11], [5, 6, 12], [6, 12, 15], [5, 6, 15],
    ]  # fmt: skip


@pytest.mark.parametrize(("released", "first"), [(False, (1, 0.1)), (True, (1.5, 0.15))])
def test_a_tree_of_flashvid(released, first):
    x = torch.tensor([[(1, 0), (0, 1)], [(1, 0.1), (-1, 0)], [(1, 0.2), (0, -1)]], dtype=torch.float64)
    reducer = FlashVID(threshold=0.9, released_counts=released)
    stays, merged, sizes = reducer._merge_over_time(x, torch.zeros(3, 2, dtype=torch.bool), budget=0)
    assert stays.tolist() == [[True, True], [False, True], [False, True]]
    assert merged[0, 0].tolist() == pytest.approx(first)
    assert merged[stays][1:].tolist() == [[0, 1], [-1, 0], [0, -1]]
    assert sizes[stays].tolist() == [3, 1, 1, 1]


@pytest.mark.parametrize(
    ("released", "total", "squares"), [(False, 0.061999, 192.367989), (True, 1.517475, 220.599243)]
)
def test_flashvid_on_the_toy_video(released, total, squares):
    reducer = FlashVID(
        threshold=0.93, min_segments=2, segment_threshold=0.5, selection="attn_div", released_counts=released
    )
    assert [len(segment) for segment in reducer.segments(toy_video())] == [5, 3]
    reduced = reducer(toy_video(), 64)
    ends = () if released else ([0.902371, -0.895241, 0.634127], [0.206661, 0.089627, 0.152801])
    agrees(reduced, 67, total, squares, *ends)
    assert reduced.size.sum() == 8 * 16


def test_flashvid_merges_no_more_than_the_budget_asks_for():
    still = dataclasses.replace(toy_video(), **{
        name: getattr(toy_video(), name)[:1].repeat(4, *[1] * (getattr(toy_video(), name).ndim - 1))
        for name in ("tokens", "saliency", "keys", "glob")
    })  # fmt: skip
    reducer = FlashVID(min_segments=1)
    assert [len(segment) for segment in reducer.segments(still)] == [4]
    assert 32 <= len(reducer(still, 32).tokens) <= 36


def test_a_form_or_selection_that_is_none_is_refused():
    with pytest.raises(ValueError, match='form is "ov" or "video", got \'qwen\''):
        FastVID("qwen")(toy_video(), 32)
    with pytest.raises(ValueError, match="\"attn_div_v2\", got 'div'"):
        FlashVID(selection="div")(toy_video(), 32)
    with pytest.raises(ValueError, match="a budget of 7 tokens is less than one for each of 8 frames"):
        VisionZip()(toy_video(), 7)


def test_segments_of_the_toy_video():
    assert [len(s) for s in segments(toy_video().glob, 2, 0.5)] == [5, 3]
