"""What holds for every reducer of the table, and the numbers of reducers_ablations.md, section 5."""

import dataclasses
import math

import pytest
import torch
from worlds.toy_video import SIDE, C, F, N, toy_queries
from worlds.toy_video import toy_video as toy

from liteframe import reducers
from liteframe.reduce import Reduced, Signals
from liteframe.reduce.dycoke import DyCoke
from liteframe.reduce.evs import EVS
from liteframe.reduce.fastvid import FastVID
from liteframe.reduce.prumerge import PruMerge
from liteframe.reduce.reducer import fitted
from liteframe.reduce.sttm import STTM
from liteframe.reduce.unicomp import UniComp
from liteframe.reduce.wap import WeightedAverage

POOLING = {name for name, reducer in reducers.items() if reducer.space == "patch"}  # a budget is a bound, 1x cannot be


def choices(reduced):
    return reduced.frame.tolist(), reduced.place.tolist(), reduced.slots


@pytest.fixture(params=sorted(reducers))
def reducer(request):
    return reducers[request.param]


def budget(signals, reducer):
    return signals.count // (16 if reducer.space == "patch" else 4)


def assert_or_refused(holds, limit):
    """It holds, or the budget that cannot be met is named."""
    try:
        held = holds()
    except ValueError as error:
        held = str(limit) in str(error)
    assert held


def test_the_video_is_that_of_the_specification():
    signals = toy()
    first = [0.841471, 0.140747, -0.909009, 0.757855, 0.074187, -0.795603]
    assert signals.tokens[0, 0].tolist() == pytest.approx(first, abs=1e-6)
    last = [0.206661, 0.089627, 0.152801, 0.327133, 0.292111, 0.199296]
    assert signals.tokens[-1, -1].tolist() == pytest.approx(last, abs=1e-6)
    assert signals.saliency[0, :4].tolist() == pytest.approx([0.067383, 0.190698, 0.060722, 0.007598], abs=1e-6)
    assert signals.keys[3, 5].tolist() == pytest.approx([-0.653644, 0.933474, -0.992225, 0.815982], abs=1e-6)
    query = [-0.128844, -0.942222, -0.725932, 0.283662, 0.983268, 0.608351]
    assert toy_queries()[2].tolist() == pytest.approx(query, abs=1e-6)
    totals = [signals.tokens.sum(), signals.saliency.sum(), signals.keys.sum(), toy_queries().sum()]
    assert totals == pytest.approx([16.036074, 8, -5.441232, -0.208941], abs=1e-6)
    likeness = torch.cosine_similarity(signals.glob[:-1], signals.glob[1:])
    expected = [0.886082, 0.899254, 0.915210, 0.881161, -0.575607, 0.928777, 0.926738]
    assert likeness.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("frames", [F, 5, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_result_is_whole(reducer, frames, dtype):
    signals = toy(dtype, frames)
    asked = budget(signals, reducer)
    if frames < F and isinstance(reducer, DyCoke | STTM):  # too many stay whole, or none is there to be joined with
        assert_or_refused(lambda: len(reducer(signals, asked).tokens) <= asked + frames, asked)
        return
    reduced = reducer(signals, asked)
    count = len(reduced.tokens)
    assert reduced.tokens.isfinite().all()
    assert reduced.tokens.shape == (count, C)
    assert reduced.tokens.dtype == dtype
    assert count == asked or not reducer.exact
    least = N if isinstance(reducer, EVS) else 0  # the first frame
    assert 0 < count <= (math.ceil(frames / 4) * 4 if reducer.space == "patch" else max(least, asked + frames))
    assert (reduced.frame.diff() >= 0).all()
    assert ((reduced.place >= -1) & (reduced.place < N)).all()
    assert (reduced.size >= 1).all()
    assert reduced.size.sum() <= frames * N or isinstance(reducer, FastVID | PruMerge | UniComp)  # one in several
    first = [begin for begin, _, tokens in reduced.slots for _ in range(tokens)]
    last = [end for _, end, tokens in reduced.slots for _ in range(tokens)]
    assert all(begin <= frame <= end < frames for begin, frame, end in zip(first, reduced.frame, last, strict=True))


def test_two_calls_agree_to_the_bit_and_change_nothing(reducer):
    signals, before = toy(), toy()
    once, twice = (reducer(signals, budget(signals, reducer)) for _ in range(2))
    assert torch.equal(once.tokens, twice.tokens)
    assert choices(once) == choices(twice)
    for field in dataclasses.fields(Signals):
        ours, theirs = getattr(signals, field.name), getattr(before, field.name)
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


def test_single_and_double_precision_choose_the_same_tokens(reducer):
    double, single = (reducer(toy(dtype), budget(toy(), reducer)) for dtype in (torch.float64, torch.float32))
    assert choices(double) == choices(single)
    assert torch.allclose(double.tokens.float(), single.tokens, atol=1e-5)


def test_a_permutation_of_channels_permutes_the_tokens(reducer):
    signals, order = toy(), torch.randperm(C, generator=torch.Generator().manual_seed(0))
    turned = dataclasses.replace(signals, tokens=signals.tokens[..., order], glob=signals.glob[..., order])
    plain, other = reducer(signals, budget(signals, reducer)), reducer(turned, budget(signals, reducer))
    assert choices(plain) == choices(other)
    assert torch.allclose(plain.tokens[:, order], other.tokens, atol=1e-12)


def test_equal_frames_give_equal_choices(reducer):
    one = toy(frames=1)
    still = Signals(*(x.repeat(8, *[1] * (x.ndim - 1)) if isinstance(x, torch.Tensor) else x for x in (
        one.tokens, one.grid, one.saliency, one.keys, one.glob
    )))  # fmt: skip
    reduced = reducer(still, budget(still, reducer))
    places = {tuple(reduced.place[reduced.frame == frame].tolist()) for frame in reduced.frame.unique().tolist()}
    # A method that merges over time files more under some frames than under others.
    assert len(places) == len({len(chosen) for chosen in places})


def test_zeros_give_no_nan(reducer):
    signals = toy()
    nothing = Signals(*(
        torch.zeros_like(x) if isinstance(x, torch.Tensor) else x for x in (
            signals.tokens, signals.grid, signals.saliency, signals.keys, signals.glob
        )
    ))  # fmt: skip
    assert reducer(nothing, budget(nothing, reducer)).tokens.isfinite().all()


def test_a_whole_budget_changes_nothing(reducer, request):
    signals = toy()
    if request.node.callspec.params["reducer"] in POOLING:
        assert len(reducer(signals, F * N).tokens) == F * N // 16
        return
    reduced = reducer(signals, F * N)
    assert torch.equal(reduced.tokens, signals.tokens.flatten(0, 1))


def test_one_token_a_frame_works_or_says_why_not(reducer, request):
    single = Signals(
        torch.randn(F, 1, C), (1, 1), torch.ones(F, 1), torch.randn(F, 1, 4), torch.randn(F, C)
    )  # fmt: skip
    if request.node.callspec.params["reducer"] in POOLING:
        with pytest.raises(ValueError, match="grid of 1x1"):
            reducer(single, F)
        return
    assert len(reducer(single, F).tokens) == F
    assert_or_refused(lambda: 0 < len(reducer(single, F // 2).tokens) <= F, F // 2)


def test_raster_order_is_the_same_tokens_by_frame_and_place(reducer):
    signals = toy()
    own, raster = (reducer(signals, budget(signals, reducer), order=order) for order in ("method", "raster"))
    rows = zip(own.frame.tolist(), own.place.tolist(), own.tokens.tolist(), own.size.tolist(), strict=True)
    expected = sorted(rows, key=lambda row: (row[0], N if row[1] < 0 else row[1]))
    found = zip(raster.frame.tolist(), raster.place.tolist(), raster.tokens.tolist(), raster.size.tolist(), strict=True)
    assert list(found) == expected
    assert raster.slots == own.slots


def test_fit_comes_within_a_percent_below_or_says_what_it_got(reducer):
    signals, limit = toy(), budget(toy(), reducer)
    assert_or_refused(lambda: 0.99 * limit <= len(reducer(signals, limit, fit=True).tokens) <= limit, limit)


def test_half_precision_stays_it(reducer):
    half = Signals(*(x.bfloat16() if isinstance(x, torch.Tensor) else x for x in (
        toy().tokens, (SIDE, SIDE), toy().saliency, toy().keys, toy().glob
    )))  # fmt: skip
    single = Signals(*(x.float() if isinstance(x, torch.Tensor) else x for x in (
        half.tokens, half.grid, half.saliency, half.keys, half.glob
    )))  # fmt: skip
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reduced = reducer(half, budget(half, reducer))
    expected = reducer(single, budget(half, reducer))
    assert torch.equal(reduced.tokens, expected.tokens.bfloat16())
    assert choices(reduced) == choices(expected)


def test_what_is_missing_is_named(reducer):
    signals = Signals(toy().tokens, (SIDE, SIDE))
    if not reducer.needs:
        reducer(signals, budget(signals, reducer))
        return
    with pytest.raises(ValueError, match=sorted(reducer.needs)[0]):
        reducer(signals, budget(signals, reducer))


@pytest.mark.parametrize(
    ("name", "total", "squares", "first", "last"),
    [
        ("average", 1.002255, 5.289553, [0.598140, -0.551952, 0.250168], [0.148398, 0.059898, 0.319123]),
        ("max", 47.153982, 50.864936, None, None),
        ("subsample", -1.549097, 23.175545, None, None),
        ("wap", 1.581503, 5.754177, [0.641548, -0.578504, 0.248203], [0.021724, 0.085752, 0.517540]),
        ("wap over frames", 1.609975, 5.752867, None, None),
    ],
)
def test_against_the_specification(name, total, squares, first, last):
    reducer = WeightedAverage(softmax_over="frame") if name == "wap over frames" else reducers[name]
    tokens = reducer(dataclasses.replace(toy(), glob=toy_queries()), 8).tokens
    assert tokens.sum().item() == pytest.approx(total, abs=2e-6)
    assert tokens.square().sum().item() == pytest.approx(squares, abs=2e-6)
    if first is not None:
        assert tokens[0, :3].tolist() == pytest.approx(first, abs=1e-6)
        assert tokens[-1, :3].tolist() == pytest.approx(last, abs=1e-6)


def test_tokens_of_a_grid():
    features = torch.randn(2, 2, 3, 5)
    tokens = Reduced.grid(features, 6, (4, 2, 2))
    assert torch.equal(tokens.tokens[7], features[1, 0, 1])
    assert tokens.slots == [(0, 3, 6), (4, 5, 6)]
    assert tokens.frame.tolist() == 6 * [0] + 6 * [4]
    assert tokens.place[:6].tolist() == [0, 2, 4, 12, 14, 16]  # in the 4x6 grid before pooling
    assert tokens.size.tolist() == 6 * [16] + 6 * [8]
    with pytest.raises(ValueError, match="9 frames in slots of 4 are 3 slots, the features have 2"):
        Reduced.grid(features, 9, (4, 2, 2))


def test_what_does_not_fit_together_is_refused():
    signals = toy()
    with pytest.raises(ValueError, match="n = "):
        Signals(signals.tokens, (4, 5))
    with pytest.raises(ValueError, match="keys is"):
        dataclasses.replace(signals, keys=torch.zeros(F, 3, 4))
    reduced = reducers["average"](signals, 8)
    with pytest.raises(ValueError, match="do not hold 8 tokens"):
        dataclasses.replace(reduced, slots=[(0, 7, 9)])
    with pytest.raises(ValueError, match="one frame, place and size each"):
        dataclasses.replace(reduced, frame=torch.zeros(3))
    with pytest.raises(ValueError, match="leaves 8 tokens, more than the budget of 7"):
        reducers["average"](signals, 7)
    with pytest.raises(ValueError, match="there is no reducer 'fast_vid'; there are average, max, "):
        reducers["fast_vid"]
    with pytest.raises(ValueError, match="at least 1 token, got 0"):
        reducers["average"](signals, 0)
    with pytest.raises(ValueError, match='"method" or "raster", got \'time\''):
        reducers["average"](signals, 8, order="time")


@pytest.mark.parametrize(
    ("frames", "n", "ratio", "budget"), [(100, 1, 0.29, 29), (32, 196, 1 / 16, 392), (3, 7, 1, 21)]
)
def test_a_ratio_is_rounded_down(frames, n, ratio, budget):
    assert Signals(torch.zeros(frames, n, 1), (n, 1)).budget(ratio) == budget


@pytest.mark.parametrize("ratio", [0, -1, 1.01, math.nan, 0.001])
def test_a_ratio_that_leaves_nothing_or_more_is_refused(ratio):
    with pytest.raises(ValueError, match="ratio"):
        toy().budget(ratio)


def first_tokens(count_of):
    """A method out of which another number of tokens comes than it is asked for, and what it was asked for."""
    asked = []

    def reduce(signals, budget):
        asked.append(budget)
        keep = torch.zeros(signals.tokens.shape[:2], dtype=torch.bool)
        keep.view(-1)[: count_of(budget)] = True
        return Reduced.kept(signals, keep)

    return reduce, asked


@pytest.mark.parametrize("count_of", [
    lambda b: b, lambda b: 0.7 * b, lambda b: 1.3 * b, lambda b: 6 * b, lambda b: 0.04 * b**1.5, lambda b: b // 4 * 4,
    lambda b: 200 + 0.3 * b,
])  # fmt: skip
def test_fit_in_eight_calls(count_of):
    signals = Signals(torch.zeros(32, 256, 1), (16, 16))
    reduce, asked = first_tokens(lambda b: min(8192, int(count_of(b))))
    assert 507 <= len(fitted(reduce, signals, 512).tokens) <= 512
    assert len(asked) <= 8


def test_a_fit_that_is_out_of_reach_is_an_error():
    signals = Signals(torch.zeros(32, 256, 1), (16, 16))
    reduce, asked = first_tokens(lambda b: b // 40 * 40)  # 480 or 520, not 507 to 512
    with pytest.raises(ValueError, match=r"480, 520 .*within 1 % below the budget of 512"):
        fitted(reduce, signals, 512)
    assert len(asked) <= 8
