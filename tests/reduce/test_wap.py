"""Weighted average pooling against loops in float64, with T that the window does not divide."""

import math

import pytest
import torch

from liteframe import weighted_average_pool


def by_loops(patches, logits, kernel, scope):
    """[T,h,w,C], [T,h,w] -> [ceil(T/t),h/kh,w/kw,C]; frames past the end do not exist."""
    frames, height, width, channels = patches.shape
    kt, kh, kw = kernel
    out = torch.zeros(math.ceil(frames / kt), height // kh, width // kw, channels, dtype=torch.float64)
    frame_softmax = logits.flatten(1).softmax(1).reshape(logits.shape)
    for t in range(out.shape[0]):
        for r in range(out.shape[1]):
            for q in range(out.shape[2]):
                block = (
                    slice(t * kt, min(frames, (t + 1) * kt)), slice(r * kh, (r + 1) * kh), slice(q * kw, (q + 1) * kw)
                )  # fmt: skip
                members = patches[block].reshape(-1, channels)
                weights = logits[block].exp() if scope == "block" else frame_softmax[block]
                out[t, r, q] = (weights.reshape(-1, 1) * members).sum(0) / weights.sum()
    return out


@pytest.mark.parametrize("frames", [1, 4, 6, 8])
@pytest.mark.parametrize("scope", ["block", "frame"])
def test_query_and_logits(frames, scope):
    patches = torch.randn(2, frames, 4, 6, 8, dtype=torch.float64)
    query = torch.randn(2, frames, 8, dtype=torch.float64)
    logits = torch.einsum("bthwc,btc->bthw", patches, query) / math.sqrt(8)
    out = weighted_average_pool(patches, query=query, scope=scope)
    torch.testing.assert_close(out, weighted_average_pool(patches, logits=logits, scope=scope))
    for b in range(2):
        torch.testing.assert_close(out[b], by_loops(patches[b], logits[b], (4, 2, 2), scope))


@pytest.mark.parametrize("frames", [3, 4, 7])
def test_neither_is_the_mean_of_real_frames(frames):
    patches = torch.randn(1, frames, 4, 4, 5, dtype=torch.float64)
    out = weighted_average_pool(patches, kernel=(2, 4, 2))
    expected = by_loops(patches[0], torch.zeros(frames, 4, 4, dtype=torch.float64), (2, 4, 2), "block")
    torch.testing.assert_close(out[0], expected)


def test_both_and_empty_and_odd_grids_are_errors():
    patches = torch.randn(1, 4, 4, 4, 5)
    with pytest.raises(ValueError, match=r"quer|logits"):
        weighted_average_pool(patches, query=torch.randn(1, 4, 5), logits=torch.randn(1, 4, 4, 4))
    with pytest.raises(ValueError, match=r"T >= 1"):
        weighted_average_pool(patches[:, :0])
    with pytest.raises(ValueError, match=r"3"):
        weighted_average_pool(patches[:, :, :3])


def test_dtype_is_kept():
    assert weighted_average_pool(torch.randn(1, 5, 2, 2, 4).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("scope", ["block", "frame"])
def test_autocast_does_not_round_the_weights(scope):
    torch.manual_seed(0)
    patches, query = 2 * torch.randn(1, 4, 4, 4, 32), 2 * torch.randn(1, 4, 32)
    exact = weighted_average_pool(patches, query=query, scope=scope)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(weighted_average_pool(patches, query=query, scope=scope), exact)
