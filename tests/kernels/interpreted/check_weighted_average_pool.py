"""weighted_average_pool's kernels against a float64 softmax over gathered blocks."""

import math

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from liteframe_kernels import weighted_average_pool
from liteframe_kernels.weighted_average_pool.op import weighted_average_pool_op


def blocks(x, kernel):
    """`[B,T,h,w,...]` as `[B,T/kt,h/kh,w/kw,members,...]`."""
    (kt, kh, kw), (b, t, h, w) = kernel, x.shape[:4]
    x = x.reshape(b, t // kt, kt, h // kh, kh, w // kw, kw, -1).permute(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(b, t // kt, h // kh, w // kw, kt * kh * kw, -1)


def exact(patches, query, logits, kernel, scope, mask):
    if query is not None:
        logits = (patches * query[:, :, None, None]).sum(-1) / math.sqrt(patches.shape[-1])
    if logits is None:
        logits = torch.zeros(patches.shape[:4], dtype=torch.float64)
    if scope == "frame":
        logits = logits.flatten(2).log_softmax(-1).reshape(logits.shape)
    if mask is not None:
        logits = logits.masked_fill(~mask[:, :, None, None], -math.inf)
    members = blocks(logits, kernel)
    dead = (members == -math.inf).all(4, keepdim=True)
    weights = members.masked_fill(dead, 0).softmax(4)
    return (weights * blocks(patches, kernel)).sum(4)


def check(assert_near, patches, *, query=None, logits=None, kernel=(4, 2, 2), scope="block", mask=None):
    with torch.no_grad():
        pooled = weighted_average_pool(
            patches, query=query, logits=logits, kernel=kernel, scope=scope, frame_mask=mask, backend="triton"
        )
        wide = [None if v is None else v.double() for v in (patches, query, logits)]
        assert_near(pooled, exact(*wide, kernel, scope, mask))
    assert pooled.dtype == patches.dtype


@pytest.mark.parametrize("kernel", [(4, 2, 2), (1, 1, 1), (2, 3, 1), (3, 1, 5)])
@pytest.mark.parametrize("mode", ["query", "logits", "mean"])
def test_kernels_and_modes(mode, kernel, assert_near, embedded):
    kt, kh, kw = kernel
    patches = embedded(2, 2 * kt, 2 * kh, kw, 5)
    query = embedded(2, 2 * kt, 5) if mode == "query" else None
    logits = embedded(*patches.shape[:3], kw) if mode == "logits" else None
    mask = torch.arange(2 * kt).expand(2, -1) < torch.tensor([[kt], [2 * kt - 1]])
    check(assert_near, patches, query=query, logits=logits, kernel=kernel)
    check(assert_near, patches, query=query, logits=logits, kernel=kernel, mask=mask)


@pytest.mark.parametrize("mode", ["query", "logits"])
def test_frame_scope(mode, assert_near, embedded):
    patches = embedded(1, 4, 4, 4, 6)
    given_weights = {"query": embedded(1, 4, 6)} if mode == "query" else {"logits": embedded(1, 4, 4, 4)}
    check(assert_near, patches, **given_weights, scope="frame", mask=torch.tensor([[True, True, False, True]]))


@pytest.mark.parametrize("scope", ["block", "frame"])
def test_autocast_rounds_nothing(scope, assert_near, embedded):
    patches = embedded(1, 4, 4, 4, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check(assert_near, patches, query=embedded(1, 4, 32), scope=scope)
        check(assert_near, patches, logits=embedded(1, 4, 4, 4), scope=scope)


def test_sums_of_bfloat16_patches_need_not_be_rounded():
    patches, query = torch.randn(1, 4, 2, 4, 6).bfloat16(), torch.randn(1, 4, 6).bfloat16()
    for scope in ("block", "frame"):
        want = exact(patches.double(), query.double(), None, (4, 2, 2), scope, None)
        got = weighted_average_pool(patches, query=query, scope=scope, precise=True, backend="triton")
        torch.testing.assert_close(got, want.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3, 100, 768, 1025, 2049])
def test_channels(channels, assert_near, embedded):
    check(assert_near, embedded(1, 4, 2, 4, channels), query=embedded(1, 4, channels))


@pytest.mark.parametrize(("frames", "side"), [(16, 2), (64, 2), (4, 8)])
def test_sizes(frames, side, assert_near, embedded):
    check(assert_near, embedded(1, frames, side, side, 3), query=embedded(1, frames, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(dtype, assert_near, embedded):
    check(assert_near, embedded(1, 4, 4, 4, 20, dtype=dtype), query=embedded(1, 4, 20, dtype=dtype))


def test_reads_the_tokens_of_a_vit_where_they_lie(assert_near):
    tokens = torch.randn(2, 4, 5 + 4 * 6, 8)
    tokens[:, :, 1:5] = float("nan")  # registers
    patches, query = tokens[:, :, 5:].unflatten(2, (4, 6)), tokens[:, :, 0]
    assert not patches.is_contiguous()
    check(assert_near, patches.detach().requires_grad_(), query=query.detach().requires_grad_())
    apart = torch.randn(1, 8, 4, 2, 2).movedim(1, -1)
    check(assert_near, apart.requires_grad_(), query=torch.randn(1, 8, 4).mT.requires_grad_())


def test_logits_far_away_and_at_minus_infinity(assert_near, embedded):
    patches, logits = embedded(1, 8, 2, 2, 3), torch.randn(1, 8, 2, 2) - 1e4
    logits[0, :4] = -math.inf
    logits[0, 4, 0] = -math.inf
    check(assert_near, patches, logits=logits.requires_grad_())


@pytest.mark.parametrize("shape", [(0, 4, 2, 2, 3), (1, 0, 2, 2, 3), (1, 4, 0, 2, 3), (1, 4, 2, 2, 0)])
def test_empty(shape):
    pooled = weighted_average_pool(torch.randn(shape), query=torch.randn(*shape[:2], shape[4]), backend="triton")
    assert pooled.shape == (shape[0], shape[1] // 4, shape[2] // 2, shape[3] // 2, shape[4])


def test_gradients_are_refused_not_lost():
    patches, query = torch.randn(1, 4, 2, 2, 3), torch.randn(1, 4, 3)
    for inputs in ((patches.clone().requires_grad_(), query), (patches, query.clone().requires_grad_())):
        with pytest.raises(ValueError, match="no backward pass"):
            weighted_average_pool(inputs[0], query=inputs[1], backend="triton")
        with torch.no_grad():
            weighted_average_pool(inputs[0], query=inputs[1], backend="triton")


def test_opcheck():
    patches, query, logits = torch.randn(1, 4, 2, 2, 3), torch.randn(1, 4, 3), torch.randn(1, 4, 2, 2)
    mask = torch.tensor([[True, True, False, False]])
    torch.library.opcheck(weighted_average_pool_op, (patches, query, None, mask, [4, 2, 2]))
    torch.library.opcheck(weighted_average_pool_op, (patches, None, logits, None, [2, 1, 2]))


@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_random_shapes(assert_near, data):
    kernel = [data.draw(st.integers(1, 4)) for _ in range(3)]
    sizes = [k * data.draw(st.integers(1, 3)) for k in kernel]
    batch, channels = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 20))
    patches = torch.randn(batch, *sizes, channels, requires_grad=True)
    query = torch.randn(batch, sizes[0], channels, requires_grad=True) if data.draw(st.booleans()) else None
    mask = torch.rand(batch, sizes[0]) > 0.3 if data.draw(st.booleans()) else None
    check(assert_near, patches, query=query, kernel=tuple(kernel), mask=mask)
