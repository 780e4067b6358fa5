"""strided_conv's kernels against F.conv3d in float64 with one group a channel."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from liteframe_kernels import strided_conv
from liteframe_kernels.strided_conv.op import strided_conv_backward_op, strided_conv_op


def conv3d(x, weight, bias):
    y = F.conv3d(x.movedim(-1, 1), weight[:, None], bias, stride=weight.shape[1:], groups=weight.shape[0])
    return y.movedim(1, -1)


def exact(x, weight, bias, cls):
    """Outputs in float64; the cls token as an image of one colour."""
    y = conv3d(x, weight, bias)
    if cls is None:
        return (y,)
    image = cls[:, :, None, None].expand(-1, -1, *weight.shape[2:], -1)
    return y, conv3d(image, weight, bias)[:, :, 0, 0]


def check(assert_near, x, kernel, *, cls=None, bias=True, weight_dtype=torch.float32):
    channels = x.shape[4]
    weight = torch.randn(channels, *kernel, dtype=weight_dtype, requires_grad=True)
    b = torch.randn(channels, dtype=weight_dtype, requires_grad=True) if bias else None
    inputs = [x, weight, b, cls]
    out = strided_conv(x, weight, b, cls=cls, backend="triton")
    out = out if isinstance(out, tuple) else (out,)
    grads = [torch.randn(y.shape).to(y.dtype) for y in out]
    before = [g.clone() for g in grads]
    got = torch.autograd.grad(out, [v for v in inputs if v is not None], grads)
    assert all(torch.equal(g, kept) for g, kept in zip(grads, before, strict=True))
    wide = [None if v is None else v.detach().double().requires_grad_() for v in inputs]
    want = exact(*wide)
    true = torch.autograd.grad(want, [v for v in wide if v is not None], [g.double() for g in grads])
    for y, y_true in zip(out, want, strict=True):
        assert y.dtype == x.dtype
        assert_near(y, y_true)
    for gradient, gradient_true in zip(got, true, strict=True):
        assert_near(gradient, gradient_true)


@pytest.mark.parametrize("kernel", [(2, 2, 2), (2, 1, 1), (1, 1, 1), (1, 2, 3), (3, 4, 1)])
@pytest.mark.parametrize("with_cls", [False, True])
def test_kernels(kernel, with_cls, assert_near, embedded):
    kt, kh, kw = kernel
    cls = embedded(2, 2 * kt, 5) if with_cls else None
    check(assert_near, embedded(2, 2 * kt, 3 * kh, 2 * kw, 5), kernel, cls=cls, bias=with_cls)


@pytest.mark.parametrize("channels", [1, 3, 100, 768])
def test_channels(channels, assert_near, embedded):
    check(assert_near, embedded(1, 2, 2, 4, channels), (2, 2, 2), cls=embedded(1, 2, channels))


@pytest.mark.parametrize(("frames", "side"), [(2, 2), (16, 2), (62, 2), (2, 16)])
def test_sizes(frames, side, assert_near, embedded):
    check(assert_near, embedded(1, frames, side, side, 3), (2, 2, 2), cls=embedded(1, frames, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(dtype, assert_near, embedded):
    x, cls = embedded(1, 4, 4, 6, 20, dtype=dtype), embedded(1, 4, 20, dtype=dtype)
    check(assert_near, x, (2, 2, 2), cls=cls, weight_dtype=torch.float64 if dtype == torch.float64 else torch.float32)


def test_reads_the_tokens_of_a_vit_where_they_lie(assert_near):
    tokens = torch.randn(2, 4, 5 + 4 * 6, 8)
    tokens[:, :, 1:5] = float("nan")  # registers
    x, cls = tokens[:, :, 5:].unflatten(2, (4, 6)).detach(), tokens[:, :, 0].detach()
    assert not x.is_contiguous()
    check(assert_near, x.requires_grad_(), (2, 2, 2), cls=cls.requires_grad_())
    check(assert_near, torch.randn(1, 8, 2, 4, 6).movedim(1, -1).requires_grad_(), (2, 2, 2))


def test_many_windows_take_several_programs_for_the_sums(assert_near, embedded):
    check(assert_near, embedded(1, 2, 24, 24, 100), (1, 1, 1), cls=embedded(1, 2, 100))


@pytest.mark.parametrize("shape", [(0, 2, 2, 2, 3), (1, 0, 2, 2, 3), (1, 2, 0, 2, 3), (1, 2, 2, 2, 0)])
def test_empty(shape, assert_near):
    x, cls = torch.randn(shape, requires_grad=True), torch.randn(*shape[:2], shape[4], requires_grad=True)
    weight, bias = torch.randn(shape[4], 2, 2, 2, requires_grad=True), torch.randn(shape[4], requires_grad=True)
    out = strided_conv(x, weight, bias, cls=cls, backend="triton")
    want = strided_conv(x, weight, bias, cls=cls, backend="reference")
    for a, b in zip(out, want, strict=True):
        assert_near(a, b)
    for a, b in zip(
        torch.autograd.grad([y.sum() for y in out], (x, weight, bias, cls)),
        torch.autograd.grad([y.sum() for y in want], (x, weight, bias, cls)),
        strict=True,
    ):
        assert_near(a, b)


def test_one_output_used_and_few_gradients_asked_for(assert_near, embedded):
    x, cls, weight = embedded(1, 2, 2, 2, 3, grad=False), embedded(1, 2, 3), torch.randn(3, 2, 2, 2)
    _, cls_y = strided_conv(x, weight, cls=cls, backend="triton")
    (got,) = torch.autograd.grad(cls_y.sum(), cls)
    assert_near(got, weight.sum((2, 3)).t()[None])


def test_gradcheck():
    x, weight, bias, cls = (
        torch.randn(s, dtype=torch.float64, requires_grad=True)
        for s in ((1, 2, 2, 2, 2), (2, 2, 2, 1), (2,), (1, 2, 2))
    )
    assert torch.autograd.gradcheck(
        lambda x, w, b, c: strided_conv(x, w, b, cls=c, backend="triton"), (x, weight, bias, cls), fast_mode=True
    )


def test_opcheck():
    x, weight, bias, cls = (
        torch.randn(s, requires_grad=True) for s in ((1, 2, 2, 2, 3), (3, 2, 2, 2), (3,), (1, 2, 3))
    )
    torch.library.opcheck(strided_conv_op, (x, weight, bias, cls))
    torch.library.opcheck(strided_conv_op, (x, weight, None, None))
    plain = [v.detach() for v in (x, weight, cls)]
    torch.library.opcheck(
        strided_conv_backward_op, (torch.randn(1, 1, 1, 1, 3), torch.randn(1, 1, 3), *plain, True, True)
    )


@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_random_shapes(assert_near, data):
    kernel = [data.draw(st.integers(1, 3)) for _ in range(3)]
    sizes = [k * data.draw(st.integers(1, 3)) for k in kernel]
    batch, channels = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 20))
    cls = torch.randn(batch, sizes[0], channels, requires_grad=True) if data.draw(st.booleans()) else None
    x = torch.randn(batch, *sizes, channels, requires_grad=True)
    check(assert_near, x, kernel, cls=cls, bias=data.draw(st.booleans()))
