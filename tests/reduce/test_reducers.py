"""What holds for every reducer of the table, and the numbers of reducers_ablations.md, section 5."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from liteframe import reducers
from liteframe.reduce import Reduced, Signals
from liteframe.reduce.wap import WeightedAverage

F, SIDE, C = 8, 4, 6
N = SIDE * SIDE
POOLING = {"average", "wap"}  # their windows lie on a grid of their own: a budget is a bound, and 1x cannot be had


def toy(dtype=torch.float64, frames=F):
    """The toy video of the specification."""
    f, i, c = np.ogrid[:frames, :N, :C]
    wobble = 0.1 * (1 + i % 3) * np.sin(2 * f + 0.9 * i + 1.7 * c)
    early = np.sin(1 + 1.3 * i + 2.1 * c + 0.37 * i * c)
    late = np.cos(2 + 0.8 * i + 1.9 * c + 0.29 * i * c)
    x = torch.from_numpy(np.where(f < 5, early, late) + wobble)
    saliency = torch.from_numpy(2 * np.sin(0.5 + 1.1 * i + 0.3 * f)[..., 0]).softmax(1)
    k = np.arange(4)
    keys = torch.from_numpy(np.cos(0.4 + 0.6 * i + 1.5 * k + 0.2 * f + 0.23 * i * k))
    query = torch.from_numpy(np.cos(0.3 + 0.7 * f + 1.1 * c)[:, 0])
    assert query.shape == (frames, C)
    return Signals(x.to(dtype), (SIDE, SIDE), saliency.to(dtype), keys.to(dtype), query.to(dtype))


def choices(reduced):
    return reduced.frame.tolist(), reduced.place.tolist(), reduced.slots


@pytest.fixture(params=sorted(reducers))
def reducer(request):
    return reducers[request.param]


def budget(signals, ratio=16):
    return signals.tokens.shape[0] * signals.tokens.shape[1] // ratio


def test_the_video_is_that_of_the_specification():
    signals = toy()
    first = [0.841471, 0.140747, -0.909009, 0.757855, 0.074187, -0.795603]
    assert signals.tokens[0, 0].tolist() == pytest.approx(first, abs=1e-6)
    totals = [signals.tokens.sum(), signals.saliency.sum(), signals.keys.sum(), signals.glob.sum()]
    assert totals == pytest.approx([16.036074, 8, -5.441232, -0.208941], abs=1e-6)


@pytest.mark.parametrize("frames", [F, 5, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_result_is_whole(reducer, frames, dtype):
    signals = toy(dtype, frames)
    reduced = reducer(signals, budget(signals))
    count = len(reduced.tokens)
    assert reduced.tokens.isfinite().all()
    assert reduced.tokens.shape == (count, C)
    assert reduced.tokens.dtype == dtype
    assert count == budget(signals) or not reducer.exact
    assert 0 < count <= math.ceil(frames / 4) * 4
    assert (reduced.frame.diff() >= 0).all()
    assert ((reduced.place >= -1) & (reduced.place < N)).all()
    assert 0 < reduced.size.sum() <= frames * N
    first = [begin for begin, _, tokens in reduced.slots for _ in range(tokens)]
    last = [end for _, end, tokens in reduced.slots for _ in range(tokens)]
    assert all(begin <= frame <= end < frames for begin, frame, end in zip(first, reduced.frame, last, strict=True))


def test_two_calls_agree_to_the_bit_and_change_nothing(reducer):
    signals, before = toy(), toy()
    once, twice = (reducer(signals, budget(signals)) for _ in range(2))
    assert torch.equal(once.tokens, twice.tokens)
    assert choices(once) == choices(twice)
    for field in dataclasses.fields(Signals):
        ours, theirs = getattr(signals, field.name), getattr(before, field.name)
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


def test_single_and_double_precision_choose_the_same_tokens(reducer):
    double, single = (reducer(toy(dtype), budget(toy())) for dtype in (torch.float64, torch.float32))
    assert choices(double) == choices(single)
    assert torch.allclose(double.tokens.float(), single.tokens, atol=1e-5)


def test_a_permutation_of_channels_permutes_the_tokens(reducer):
    signals, order = toy(), torch.randperm(C, generator=torch.Generator().manual_seed(0))
    turned = dataclasses.replace(signals, tokens=signals.tokens[..., order], glob=signals.glob[..., order])
    plain, other = reducer(signals, budget(signals)), reducer(turned, budget(signals))
    assert choices(plain) == choices(other)
    assert torch.allclose(plain.tokens[:, order], other.tokens, atol=1e-12)


def test_equal_frames_give_equal_choices(reducer):
    one = toy(frames=1)
    still = Signals(*(x.repeat(8, *[1] * (x.ndim - 1)) if isinstance(x, torch.Tensor) else x for x in (
        one.tokens, one.grid, one.saliency, one.keys, one.glob
    )))  # fmt: skip
    reduced = reducer(still, budget(still))
    by_frame = {frame: reduced.place[reduced.frame == frame].tolist() for frame in reduced.frame.unique().tolist()}
    assert len({tuple(places) for places in by_frame.values()}) == 1


def test_zeros_give_no_nan(reducer):
    signals = toy()
    nothing = Signals(*(
        torch.zeros_like(x) if isinstance(x, torch.Tensor) else x for x in (
            signals.tokens, signals.grid, signals.saliency, signals.keys, signals.glob
        )
    ))  # fmt: skip
    assert reducer(nothing, budget(nothing)).tokens.isfinite().all()


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


def test_what_is_missing_is_named(reducer):
    signals = Signals(toy().tokens, (SIDE, SIDE))
    if not reducer.needs:
        reducer(signals, budget(signals))
        return
    with pytest.raises(ValueError, match=sorted(reducer.needs)[0]):
        reducer(signals, budget(signals))


@pytest.mark.parametrize(
    ("name", "total", "squares", "first", "last"),
    [
        ("average", 1.002255, 5.289553, [0.598140, -0.551952, 0.250168], [0.148398, 0.059898, 0.319123]),
        ("wap", 1.581503, 5.754177, [0.641548, -0.578504, 0.248203], [0.021724, 0.085752, 0.517540]),
        ("wap over frames", 1.609975, 5.752867, None, None),
    ],
)
def test_against_the_specification(name, total, squares, first, last):
    reducer = WeightedAverage(softmax_over="frame") if name == "wap over frames" else reducers[name]
    tokens = reducer(toy(), 8).tokens
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
