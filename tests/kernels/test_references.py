"""The PyTorch references against F.conv1d, F.conv3d and float64 loops, which share no code with them."""

import math

import pytest
import torch
import torch.nn.functional as F
from liteframe_kernels import residual_norm, strided_conv, temporal_conv, weighted_average_pool


def randn(*shape, dtype=torch.float64, grad=False):
    return torch.randn(shape, dtype=dtype).requires_grad_(grad)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def conv1d(x, weight, bias):
    """[B,T,N,C] through F.conv1d with one group a channel."""
    rows = x.permute(0, 2, 3, 1).flatten(0, 1)
    y = F.conv1d(rows, weight[:, None], bias, padding=weight.shape[1] // 2, groups=x.shape[3])
    return y.unflatten(0, (x.shape[0], x.shape[2])).permute(0, 3, 1, 2)


@pytest.fixture(params=[True, False], ids=["grad", "no grad"])
def grad_mode(request):
    """References take another way where no gradient is asked for."""
    with torch.set_grad_enabled(request.param):
        yield


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_temporal_conv_is_conv1d(frames, k, grad_mode):
    x, weight, bias = randn(2, frames, 3, 4), randn(4, k), randn(4)
    want = conv1d(x, weight, bias)
    torch.testing.assert_close(temporal_conv(x, weight, bias), want)
    torch.testing.assert_close(temporal_conv(x, weight, residual=True), x + want - bias)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_residual_norm_is_conv1d_and_layer_norm(frames, grad_mode):
    x, branch, weight, bias = randn(2, frames, 3, 4), randn(2, frames, 3, 4), randn(4, 3), randn(4)
    scale, norm_weight, norm_bias = randn(4), randn(4), randn(4)
    z = x + scale * branch
    for given, want in (
        ({"scale": scale, "conv_weight": weight, "conv_bias": bias}, z + conv1d(z, weight, bias)),
        ({"scale": scale}, z),
        ({}, x + branch),
    ):
        stream, normalized = residual_norm(x, branch, norm_weight, norm_bias, eps=0.1, **given)
        torch.testing.assert_close(stream, want)
        centered = want - want.mean(-1, keepdim=True)
        std = (centered.square().mean(-1, keepdim=True) + 0.1).sqrt()
        torch.testing.assert_close(normalized, norm_weight * centered / std + norm_bias)


@pytest.mark.parametrize(
    ("stream", "branch"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float16,) * 2]
)
def test_residual_norm_keeps_the_wider_dtype_and_gives_that_of_the_branch(stream, branch):
    wide = torch.promote_types(stream, branch)
    x, a, vector = randn(1, 2, 3, 4).to(stream), randn(1, 2, 3, 4).to(branch), torch.ones(4, dtype=wide)
    assert [y.dtype for y in residual_norm(x, a, vector, vector, eps=1e-6)] == [wide, branch]


@pytest.mark.parametrize("kernel", [(2, 2, 2), (2, 1, 1), (3, 1, 2), (1, 1, 1)])
def test_strided_conv_is_conv3d(kernel, grad_mode):
    kt, kh, kw = kernel
    tokens, weight, bias = randn(2, 2 * kt, 1 + 3 * kh * 2 * kw, 5), randn(5, *kernel), randn(5)
    x = tokens[:, :, 1:].unflatten(2, (3 * kh, 2 * kw))
    want = F.conv3d(x.movedim(-1, 1), weight[:, None], bias, stride=kernel, groups=5).movedim(1, -1)
    y, cls = strided_conv(x, weight, bias, cls=tokens[:, :, 0])
    torch.testing.assert_close(y, want)
    # a cls token that is constant over space is an image of one colour
    plane = tokens[:, :, :1].unflatten(2, (1, 1)).expand_as(x)
    as_image = F.conv3d(plane.movedim(-1, 1), weight[:, None], bias, stride=kernel, groups=5).movedim(1, -1)
    torch.testing.assert_close(cls, as_image[:, :, 0, 0])
    torch.testing.assert_close(strided_conv(x, weight), want - bias)


def test_in_bfloat16_without_gradients_a_reference_rounds_once():
    x, weight, bias = randn(2, 4, 9, 8), randn(8, 3), randn(8)
    narrow = [tensor.bfloat16() for tensor in (x, weight, bias)]
    patches, taps = x[:, :, 1:].unflatten(2, (2, 4)).bfloat16(), randn(8, 2, 2, 2).bfloat16()
    with torch.no_grad():
        pairs = [
            (temporal_conv(*narrow, residual=True), temporal_conv(*(t.double() for t in narrow), residual=True)),
            (strided_conv(patches, taps), strided_conv(patches.double(), taps.double())),
        ]
    for found, exact in pairs:
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-5)


def pool_by_loops(patches, logits, kernel, *, scope="block", mask=None):
    """Weighted average pooling member by member, in Python floats."""
    b, t, h, w, c = patches.shape
    kt, kh, kw = kernel
    out = torch.zeros(b, t // kt, h // kh, w // kw, c, dtype=torch.float64)
    for ib in range(b):
        for index in range(out[0, ..., 0].numel()):
            it, ih, iw = (int(i) for i in torch.unravel_index(torch.tensor(index), out.shape[1:4]))
            members = [(it * kt + i, ih * kh + j, iw * kw + k) for i in range(kt) for j in range(kh) for k in range(kw)]
            weights = []
            for frame, y, x in members:
                weight = math.exp(logits[ib, frame, y, x])
                if scope == "frame":
                    weight /= sum(math.exp(v) for v in logits[ib, frame].flatten().tolist())
                weights.append(weight if mask is None or bool(mask[ib, frame]) else 0.0)
            if sum(weights) == 0:
                weights = [1.0] * len(members)
            for weight, (frame, y, x) in zip(weights, members, strict=True):
                out[ib, it, ih, iw] += weight / sum(weights) * patches[ib, frame, y, x]
    return out


@pytest.mark.parametrize("scope", ["block", "frame"])
@pytest.mark.parametrize("kernel", [(4, 2, 2), (2, 1, 3)])
def test_pool_is_the_loop(kernel, scope):
    patches, query = randn(2, 8, 4, 6, 3), randn(2, 8, 3)
    logits = torch.stack(
        [torch.stack([(patches[b, t] @ query[b, t]) / math.sqrt(3) for t in range(8)]) for b in range(2)]
    )
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[0, 6:] = False
    mask[1, :4] = False
    want = pool_by_loops(patches, logits, kernel, scope=scope, mask=mask)
    got = weighted_average_pool(patches, query=query, kernel=kernel, scope=scope, frame_mask=mask)
    torch.testing.assert_close(got, want)
    given = weighted_average_pool(patches, logits=logits, kernel=kernel, scope=scope, frame_mask=mask)
    torch.testing.assert_close(given, want)


@pytest.mark.parametrize("scope", ["block", "frame"])
def test_pool_is_the_loop_inside_autocast(scope):
    """Both the public function and the reference: neither may multiply in half precision."""
    patches, query = 2 * randn(1, 4, 4, 4, 32), 2 * randn(1, 4, 32)
    logits = (patches * query[:, :, None, None]).sum(-1) / math.sqrt(32)
    want = pool_by_loops(patches, logits, (4, 2, 2), scope=scope)
    for pool in (weighted_average_pool, weighted_average_pool.reference):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            by_query = pool(patches.float(), query=query.float(), scope=scope)
            by_logits = pool(patches.float(), logits=logits.float(), scope=scope)
        torch.testing.assert_close(by_query.double(), want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(by_logits.double(), want, rtol=1e-5, atol=1e-5)


def test_sums_of_half_precision_patches_need_not_be_rounded():
    patches, query = randn(1, 4, 2, 2, 8).bfloat16(), randn(1, 4, 8).bfloat16()
    logits = (patches.double() * query.double()[:, :, None, None]).sum(-1) / math.sqrt(8)
    want = pool_by_loops(patches.double(), logits, (4, 2, 2))
    sums = weighted_average_pool(patches, query=query, precise=True)
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums.double(), want, rtol=1e-5, atol=1e-6)
    assert torch.equal(weighted_average_pool(patches, query=query), sums.bfloat16())


def test_pool_without_weights_is_the_mean():
    patches = randn(1, 4, 4, 4, 3)
    want = F.avg_pool3d(patches.movedim(-1, 1), (4, 2, 2)).movedim(1, -1)
    torch.testing.assert_close(weighted_average_pool(patches), want)
    mask = torch.tensor([[True, True, False, False]])
    half = F.avg_pool3d(patches[:, :2].movedim(-1, 1), (2, 2, 2)).movedim(1, -1)
    torch.testing.assert_close(weighted_average_pool(patches, frame_mask=mask), half)


def test_pool_blocks_without_members_are_uniform_and_finite():
    patches, logits = randn(1, 4, 2, 2, 3, grad=True), torch.full((1, 4, 2, 2), -math.inf, dtype=torch.float64)
    logits.requires_grad_()
    pooled = weighted_average_pool(patches, logits=logits)
    torch.testing.assert_close(pooled, patches.mean((1, 2, 3), keepdim=True))
    pooled.sum().backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    for scope in ("block", "frame"):
        masked = weighted_average_pool(
            patches, query=randn(1, 4, 3), frame_mask=torch.zeros(1, 4, dtype=torch.bool), scope=scope
        )
        torch.testing.assert_close(masked, pooled)


def test_pool_survives_large_logits():
    patches = randn(1, 4, 2, 2, 3, dtype=torch.float32)
    logits = torch.zeros(1, 4, 2, 2)
    logits[0, 2, 1, 0] = 1e4
    for scope in ("block", "frame"):
        torch.testing.assert_close(weighted_average_pool(patches, logits=logits)[0, 0, 0, 0], patches[0, 2, 1, 0])
        far = logits - 5e4
        assert weighted_average_pool(patches, logits=far, scope=scope).isfinite().all()


def test_half_precision_keeps_its_dtype_and_sums_wide():
    # 256 ones of 1 + 2^-7: a bfloat16 sum would stop growing at 256, the wide sum is exact
    x = torch.full((1, 256, 1, 1), 1.0, dtype=torch.bfloat16)
    y = temporal_conv(x, torch.full((1, 511), 1.0078125))
    assert y.dtype == torch.bfloat16
    assert y[0, 128, 0, 0].item() == 258.0
    pooled = weighted_average_pool(torch.ones(1, 4, 2, 2, 8, dtype=torch.float16), query=torch.ones(1, 4, 8).half())
    assert pooled.dtype == torch.float16


def test_gradients():
    conv = (randn(1, 4, 2, 3, grad=True), randn(3, 3, grad=True), randn(3, grad=True))
    assert torch.autograd.gradcheck(lambda *a: temporal_conv(*a, residual=True), conv)
    strided = (randn(1, 2, 2, 2, 3, grad=True), randn(3, 2, 2, 2, grad=True), randn(3, grad=True))
    cls = randn(1, 2, 3, grad=True)
    assert torch.autograd.gradcheck(lambda x, w, b, c: strided_conv(x, w, b, cls=c), (*strided, cls))
    pool = (randn(1, 4, 2, 2, 3, grad=True), randn(1, 4, 3, grad=True))
    for scope in ("block", "frame"):
        assert torch.autograd.gradcheck(
            lambda p, q, scope=scope: weighted_average_pool(p, query=q, kernel=(2, 1, 2), scope=scope), pool
        )


@pytest.mark.parametrize("shape", [(0, 4, 4, 4, 3), (1, 0, 4, 4, 3), (1, 4, 0, 4, 3), (1, 4, 4, 4, 0)])
def test_empty_tensors(shape):
    x = torch.randn(shape, requires_grad=True)
    flat = x.flatten(2, 3)
    assert temporal_conv(flat, torch.randn(shape[-1], 3), torch.randn(shape[-1])).shape == flat.shape
    y = strided_conv(x, torch.randn(shape[-1], 2, 2, 2), cls=torch.randn(*shape[:2], shape[-1]))
    assert y[0].shape == (shape[0], shape[1] // 2, shape[2] // 2, shape[3] // 2, shape[4])
    weighted_average_pool(x, query=torch.randn(*shape[:2], shape[-1])).sum().backward()
    assert x.grad.shape == x.shape


def joined(**changed):
    """A small call of residual_norm, with arguments changed."""
    given = {"x": randn(1, 2, 3, 4), "branch": randn(1, 2, 3, 4), "norm_weight": randn(4), "norm_bias": randn(4)}
    return residual_norm(**given | changed, eps=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: temporal_conv(randn(1, 2, 3), randn(3, 3)), r"expected \[B,T,N,C\]"),
        (lambda: temporal_conv(randn(1, 2, 3, 4), randn(3, 3)), "C=4"),
        (lambda: temporal_conv(randn(1, 2, 3, 4), randn(4, 2)), "must be odd"),
        (lambda: temporal_conv(randn(1, 2, 3, 4), randn(4, 3), randn(3)), "bias has shape"),
        (lambda: temporal_conv(randn(1, 2, 3, 4).int(), randn(4, 3)), r"x is torch.int32.*x.float\(\)"),
        (lambda: temporal_conv(randn(1, 2, 3, 4), randn(4, 3), backend="cuda"), "backend is 'cuda'"),
        (lambda: temporal_conv(randn(1, 2, 3, 4), randn(4, 3), backend="triton"), "TRITON_INTERPRET=1|not installed"),
        (lambda: residual_norm(randn(1, 2, 4), randn(1, 2, 4), randn(4), randn(4), eps=1e-6), r"expected \[B,T,N,C\]"),
        (lambda: joined(branch=randn(1, 2, 1, 4)), "branch has shape"),
        (lambda: joined(norm_bias=randn(3)), "norm_bias has shape"),
        (lambda: joined(conv_bias=randn(4)), "conv_bias without conv_weight"),
        (lambda: joined(conv_weight=randn(3, 3)), "C=4"),
        (lambda: joined(conv_weight=randn(4, 2)), "must be odd"),
        (lambda: joined(scale=randn(4).int()), r"scale is torch.int32.*scale.float\(\)"),
        (lambda: strided_conv(randn(1, 3, 4, 4, 2), randn(2, 2, 2, 2)), "T=3 is not a multiple of its stride 2"),
        (lambda: strided_conv(randn(1, 2, 4, 4, 2), randn(2, 2, 2, 2), cls=randn(1, 1, 2)), "cls has shape"),
        (lambda: strided_conv(randn(1, 2, 4, 4, 2), randn(2, 2, 2)), r"expected \[C,kt,kh,kw\]"),
        (lambda: weighted_average_pool(randn(1, 6, 4, 4, 2)), "T=6 is not a multiple of its block size 4"),
        (lambda: weighted_average_pool(randn(1, 4, 4, 4, 2), kernel=(4, 0, 2)), "block size 0"),
        (lambda: weighted_average_pool(randn(1, 4, 4, 4, 2), scope="clip"), "'block' or 'frame'"),
        (lambda: weighted_average_pool(randn(1, 4, 4, 4, 2), query=randn(1, 4, 2), logits=randn(1, 4, 4, 4)), "both"),
        (lambda: weighted_average_pool(randn(1, 4, 4, 4, 2), query=randn(1, 1, 2)), "query has shape"),
        (lambda: weighted_average_pool(randn(1, 4, 4, 4, 2), frame_mask=torch.ones(1, 4)), "expected torch.bool"),
    ],
)
def test_bad_input_is_explained(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_every_function_carries_its_reference():
    x, weight = randn(1, 3, 2, 4), randn(4, 3)
    assert torch.equal(temporal_conv.reference(x, weight), temporal_conv(x, weight, backend="reference"))
    others = (residual_norm, strided_conv, weighted_average_pool)
    assert {function.reference.__name__ for function in others} == {
        "residual_norm_reference",
        "strided_conv_reference",
        "weighted_average_pool_reference",
    }


def test_torch_compile_traces_the_references_whole():
    def chain(x, weight, bias):
        return temporal_conv(x, weight, bias, residual=True).mean()

    x, weight, bias = randn(1, 4, 2, 3), randn(3, 3), randn(3)
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight, bias), chain(x, weight, bias))
