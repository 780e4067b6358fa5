"""temporal_conv's kernels against F.conv1d in float64 with one group a channel."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from liteframe_kernels import temporal_conv
from liteframe_kernels.temporal_conv.op import temporal_conv_backward_op, temporal_conv_op


def exact(x, weight, bias, grad, *, residual=False):
    """Output and gradients in float64."""
    inputs = [None if v is None else v.detach().double().requires_grad_() for v in (x, weight, bias)]
    wide, w, b = inputs
    rows = wide.permute(0, 2, 3, 1).flatten(0, 1)  # [B*N,C,T]
    y = F.conv1d(rows, w[:, None], b, padding=weight.shape[1] // 2, groups=x.shape[3])
    y = y.unflatten(0, (x.shape[0], x.shape[2])).permute(0, 3, 1, 2) + (wide if residual else 0)  # [B,T,N,C]
    return y, *torch.autograd.grad(y, [v for v in inputs if v is not None], grad.double())


def check(assert_near, x, k, *, bias=True, weight_dtype=torch.float32, **options):
    dtype, channels = x.dtype, x.shape[3]
    weight = torch.randn(channels, k, dtype=weight_dtype, requires_grad=True)
    b = torch.randn(channels, dtype=weight_dtype, requires_grad=True) if bias else None
    y = temporal_conv(x, weight, b, backend="triton", **options)
    grad = torch.randn(y.shape).to(dtype)
    before = grad.clone()
    got = torch.autograd.grad(y, [v for v in (x, weight, b) if v is not None], grad)
    assert torch.equal(grad, before)
    want = exact(x, weight, b, grad, **options)
    assert y.dtype == dtype
    assert_near(y, want[0])
    assert_near(got[0], want[1])
    for parameter, true in zip(got[1:], want[2:], strict=True):
        assert_near(parameter, true, dtype if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 16, 17, 23])
def test_frames(frames, assert_near, embedded):
    check(assert_near, embedded(2, frames, 3, 5), 3)


@pytest.mark.parametrize("channels", [1, 3, 100, 768])
def test_channels(channels, assert_near, embedded):
    check(assert_near, embedded(1, 3, 2, channels), 3)


@pytest.mark.parametrize("tokens", [1, 17, 257, 1025])
def test_tokens(tokens, assert_near, embedded):
    check(assert_near, embedded(1, 2, tokens, 3), 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(dtype, assert_near, embedded):
    weight_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    check(assert_near, embedded(1, 5, 17, 100, dtype=dtype), 3, weight_dtype=weight_dtype, residual=True)


def test_parameters_in_half_precision(assert_near, embedded):
    x = embedded(1, 5, 3, 8, dtype=torch.float16)
    weight, bias = torch.randn(8, 3).half().requires_grad_(), torch.randn(8).half().requires_grad_()
    y = temporal_conv(x, weight, bias, backend="triton")
    grad = torch.randn(y.shape).half()
    for got, want in zip(
        torch.autograd.grad(y, (x, weight, bias), grad), exact(x, weight, bias, grad)[1:], strict=True
    ):
        assert got.dtype == torch.float16
        assert_near(got, want)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("k", [1, 3, 9])
def test_taps_and_modes(k, residual, assert_near, embedded):
    check(assert_near, embedded(2, 6, 3, 4), k, residual=residual)


def test_long_clips_take_several_programs_for_the_sums(assert_near, embedded):
    check(assert_near, embedded(1, 131, 2, 3), 3)  # a whole span of frames, and one of three
    check(assert_near, embedded(1, 2, 203, 100), 3, bias=False)  # programs of six blocks; the last one's last not full


@pytest.mark.parametrize("view", ["without cls", "channels apart", "one stride for all"])
def test_strided_inputs(view, assert_near):
    if view == "without cls":
        x = torch.randn(2, 4, 6, 8)[:, :, 1:]
    elif view == "channels apart":
        x = torch.randn(2, 8, 4, 5).permute(0, 2, 3, 1)
    else:
        x = torch.randn(2, 1, 1, 8).expand(2, 4, 5, 8)
    check(assert_near, x.detach().requires_grad_(), 3)


def test_gradient_that_is_expanded(assert_near, embedded):
    x, weight = embedded(1, 4, 3, 5), torch.randn(5, 3, requires_grad=True)
    y = temporal_conv(x, weight, backend="triton")
    got = torch.autograd.grad(y.sum(), (x, weight))
    for g, want in zip(got, exact(x, weight, None, torch.ones_like(y))[1:], strict=True):
        assert_near(g, want)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0)])
def test_empty(shape):
    x, weight, bias = torch.randn(shape, requires_grad=True), torch.randn(shape[3], 3), torch.randn(shape[3])
    weight.requires_grad_()
    bias.requires_grad_()
    y = temporal_conv(x, weight, bias, backend="triton")
    gradients = torch.autograd.grad(y.sum(), (x, weight, bias))
    assert y.shape == shape
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_only_the_gradients_asked_for(wanted, assert_near):
    inputs = [torch.randn(1, 4, 3, 5), torch.randn(5, 3), torch.randn(5)]
    for i in wanted:
        inputs[i].requires_grad_()
    y = temporal_conv(*inputs, backend="triton")
    grad = torch.randn_like(y)
    got = torch.autograd.grad(y, [inputs[i] for i in wanted], grad)
    want = exact(*inputs, grad)
    for g, i in zip(got, wanted, strict=True):
        assert_near(g, want[1 + i])


def test_gradcheck():
    x = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)
    for options in ({}, {"residual": True}):
        assert torch.autograd.gradcheck(
            lambda *a, options=options: temporal_conv(*a, backend="triton", **options),
            (x, weight, bias),
            fast_mode=True,
        )


def test_opcheck():
    x, weight, bias = (torch.randn(s, requires_grad=True) for s in ((1, 4, 2, 3), (3, 3), (3,)))
    torch.library.opcheck(temporal_conv_op, (x, weight, bias, True))
    torch.library.opcheck(temporal_conv_op, (x, weight, None, False))
    g, plain = torch.randn(1, 4, 2, 3), [v.detach() for v in (x, weight)]
    torch.library.opcheck(temporal_conv_backward_op, (g, *plain, True, True, True))


def test_compile_and_export_trace_through():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = torch.nn.Parameter(torch.randn(3, 3)), torch.nn.Parameter(torch.randn(3))

        def forward(self, x):
            return 2 * temporal_conv(x, self.weight, self.bias, residual=True, backend="triton")

    layer, x = Layer(), torch.randn(1, 4, 2, 3)
    want = layer(x)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), want)
    program = torch.export.export(layer, (x,))
    assert any("temporal_conv" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), want)


def test_backward_is_repeatable(embedded):
    x, weight, bias = embedded(2, 40, 9, 5), torch.randn(5, 3, requires_grad=True), torch.randn(5, requires_grad=True)
    y = temporal_conv(x, weight, bias, backend="triton")
    grad = torch.randn_like(y)
    first, second = (torch.autograd.grad(y, (x, weight, bias), grad, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_random_shapes(assert_near, data):
    shape = [data.draw(st.integers(1, high)) for high in (2, 11, 9, 20)]
    x = torch.randn(shape, requires_grad=True)
    check(
        assert_near,
        x,
        2 * data.draw(st.integers(0, 3)) + 1,
        bias=data.draw(st.booleans()),
        residual=data.draw(st.booleans()),
    )
