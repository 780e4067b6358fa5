"""residual_norm's kernels against torch's own convolution and LayerNorm in float64."""

import pytest
import torch
import torch.nn.functional as F
from liteframe_kernels import residual_norm
from liteframe_kernels.residual_norm.op import residual_norm_backward_op, residual_norm_op

EPS = 1e-6
NAMES = ("x", "branch", "norm_weight", "norm_bias", "scale", "conv_weight", "conv_bias")


def exact(x, branch, norm_weight, norm_bias, *, scale=None, conv_weight=None, conv_bias=None):
    z = x + branch * (1 if scale is None else scale)
    if conv_weight is not None:
        rows = z.permute(0, 2, 3, 1).flatten(0, 1)  # [B*N,C,T]
        y = F.conv1d(rows, conv_weight[:, None], conv_bias, padding=conv_weight.shape[1] // 2, groups=x.shape[3])
        z = z + y.unflatten(0, (x.shape[0], x.shape[2])).permute(0, 3, 1, 2)
    return z, F.layer_norm(z, z.shape[-1:], norm_weight, norm_bias, EPS)


def tensors(x, branch, *, taps=3, scale=True, bias=True, dtype=torch.float32):
    channels = x.shape[3]

    def made(*shape):
        return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()

    given = {"x": x, "branch": branch, "norm_weight": made(channels), "norm_bias": made(channels)}
    if scale:
        given["scale"] = made(channels)
    if taps:
        given["conv_weight"] = made(channels, taps)
        if bias:
            given["conv_bias"] = made(channels)
    return given


def check(assert_near, given):
    outputs = residual_norm(**given, eps=EPS, backend="triton")
    grads = [torch.randn(y.shape, dtype=torch.float64).to(y.dtype) for y in outputs]
    got = torch.autograd.grad(outputs, list(given.values()), grads)
    wide = {name: value.detach().double().requires_grad_() for name, value in given.items()}
    true = exact(**wide)
    want = torch.autograd.grad(true, list(wide.values()), [grad.double() for grad in grads])
    narrow = given["branch"].dtype
    assert [y.dtype for y in outputs] == [given["x"].dtype, narrow]
    for y, truth in zip(outputs, true, strict=True):
        assert_near(y, truth)
    for value, gradient, truth in zip(given.values(), got, want, strict=True):
        assert gradient.dtype == value.dtype
        assert_near(gradient, truth, narrow if given["x"].dtype == narrow and narrow.itemsize == 2 else None)


@pytest.mark.parametrize(
    ("shape", "taps"),
    [
        ((2, 1, 3, 5), 3),
        ((1, 2, 35, 96), 3),  # several tokens a program, the last one not full
        ((2, 3, 6, 192), 3),
        ((1, 5, 3, 768), 3),
        ((1, 9, 2, 1100), 3),  # wider than a program of the usual size
        ((2, 4, 3, 40), 0),
        ((1, 17, 2, 16), 0),
        ((1, 7, 2, 24), 5),
        ((1, 3, 2, 1), 1),
        ((2, 1, 3, 40), 1),  # a still
    ],
)
def test_shapes(shape, taps, assert_near, embedded):
    check(assert_near, tensors(embedded(*shape), embedded(*shape), taps=taps))


def test_many_tokens_take_several_programs_for_the_sums(assert_near, embedded):
    check(assert_near, tensors(embedded(1, 2, 260, 40), embedded(1, 2, 260, 40)))


@pytest.mark.parametrize("taps", [0, 3])
@pytest.mark.parametrize(
    ("stream", "branch"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_dtypes(stream, branch, taps, assert_near, embedded):
    given = embedded(1, 4, 3, 96, dtype=stream), embedded(1, 4, 3, 96, dtype=branch)
    check(assert_near, tensors(*given, taps=taps, dtype=torch.promote_types(stream, torch.float32)))


def test_without_scale_and_bias(assert_near, embedded):
    for options in ({"scale": False}, {"bias": False}, {"scale": False, "taps": 0}):
        check(assert_near, tensors(embedded(1, 3, 2, 20), embedded(1, 3, 2, 20), **options))


@pytest.mark.parametrize("place", [0, 1])
def test_an_output_that_nothing_depends_on(place, assert_near):
    given = tensors(*(torch.randn(1, 3, 2, 8, requires_grad=True) for _ in range(2)))
    wide = {name: value.detach().double().requires_grad_() for name, value in given.items()}
    y, truth = residual_norm(**given, eps=EPS, backend="triton")[place], exact(**wide)[place]
    weight = torch.randn(y.shape)
    got = torch.autograd.grad((y * weight).sum(), list(given.values()), materialize_grads=True)
    want = torch.autograd.grad((truth * weight).sum(), list(wide.values()), materialize_grads=True)
    for gradient, true in zip(got, want, strict=True):
        assert_near(gradient, true)


def test_strided_branch_and_a_vector_for_all_tokens(assert_near):
    x = torch.randn(2, 8, 4, 5).permute(0, 2, 3, 1).requires_grad_()
    branch = torch.randn(8).expand(2, 4, 5, 8).requires_grad_()
    check(assert_near, tensors(x, branch))


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4)])
def test_empty(shape):
    given = tensors(*(torch.randn(shape, requires_grad=True) for _ in range(2)))
    outputs = residual_norm(**given, eps=EPS, backend="triton")
    gradients = torch.autograd.grad(sum(y.sum() for y in outputs), list(given.values()))
    assert all(y.shape == shape for y in outputs)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


def test_opcheck():
    x, branch, vector, weight = torch.randn(1, 3, 2, 5), torch.randn(1, 3, 2, 5), torch.randn(5), torch.randn(5, 3)
    leaves = [v.clone().requires_grad_() for v in (x, branch, vector, weight, vector)]
    torch.library.opcheck(residual_norm_op, (*leaves, vector, vector, EPS))
    plain = [x, branch, None, None, None, vector, x[..., 0], x[..., 0].exp()]
    torch.library.opcheck(residual_norm_backward_op, (x, branch, *plain))


def test_compile_and_export_trace_through():
    given = tensors(*(torch.randn(1, 3, 2, 8) for _ in range(2)))
    rest = {name: value.detach() for name, value in given.items() if name not in ("x", "branch")}

    class Layer(torch.nn.Module):
        def forward(self, x, branch):
            stream, normalized = residual_norm(x, branch, **rest, eps=EPS, backend="triton")
            return 2 * stream + normalized

    layer, inputs = Layer(), (given["x"], given["branch"])
    want = layer(*inputs)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(*inputs), want)
    program = torch.export.export(layer, inputs)
    assert any("residual_norm" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*inputs), want)


def test_backward_is_repeatable(embedded):
    given = tensors(embedded(2, 5, 90, 24), embedded(2, 5, 90, 24))
    outputs = residual_norm(**given, eps=EPS, backend="triton")
    grads = [torch.randn_like(y) for y in outputs]
    first, second = (torch.autograd.grad(outputs, list(given.values()), grads, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
