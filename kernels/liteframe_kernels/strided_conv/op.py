"""Depthwise convolution with kernel = stride: custom ops, their gradients, and the public function."""

from typing import Any, overload

import torch
from torch import Tensor

from liteframe_kernels.backend import check_floating, check_shape, use_triton, with_reference
from liteframe_kernels.precision import accumulator
from liteframe_kernels.strided_conv.reference import strided_conv_reference


@torch.library.custom_op("liteframe_kernels::strided_conv", mutates_args=())
def strided_conv_op(x: Tensor, weight: Tensor, bias: Tensor | None, cls: Tensor | None) -> tuple[Tensor, Tensor]:
    """Triton forward; see `strided_conv`. The second output is empty without cls."""
    from liteframe_kernels.strided_conv import triton

    return triton.forward(x, weight, bias, cls)


@torch.library.custom_op("liteframe_kernels::strided_conv_backward", mutates_args=())
def strided_conv_backward_op(
    grad: Tensor, grad_cls: Tensor, x: Tensor, weight: Tensor, cls: Tensor | None, need_dx: bool, need_dw: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Triton backward: gradients of x, cls, weight and bias, empty where not needed."""
    from liteframe_kernels.strided_conv import triton

    return triton.backward(grad, grad_cls, x, weight, cls, need_dx, need_dw)


@strided_conv_op.register_fake
def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, cls: Tensor | None) -> tuple[Tensor, Tensor]:
    sizes = [size // stride for size, stride in zip(x.shape[1:4], weight.shape[1:], strict=True)]
    y = x.new_empty((x.shape[0], *sizes, x.shape[4]))
    return y, x.new_empty((0,) if cls is None else (x.shape[0], sizes[0], x.shape[4]))


@strided_conv_backward_op.register_fake
def _backward_fake(
    grad: Tensor, grad_cls: Tensor, x: Tensor, weight: Tensor, cls: Tensor | None, need_dx: bool, need_dw: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx = x.new_empty(x.shape if need_dx else (0,))
    dcls = x.new_empty(cls.shape if cls is not None and need_dx else (0,))
    dtype = accumulator(x.dtype)
    dw = x.new_empty(weight.shape if need_dw else (0,), dtype=dtype)
    return dx, dcls, dw, x.new_empty((weight.shape[0] if need_dw else 0,), dtype=dtype)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, cls = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight, cls)


def _gradients(ctx: Any, grad: Tensor, grad_cls: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, cls = ctx.saved_tensors
    need_x, need_weight, need_bias, need_cls = ctx.needs_input_grad
    dx, dcls, dw, db = strided_conv_backward_op(
        grad, grad_cls, x, weight, cls, need_x or need_cls, need_weight or need_bias
    )
    return (
        dx if need_x else None,
        dw.to(weight.dtype) if need_weight else None,
        db.to(ctx.bias_dtype) if need_bias else None,
        dcls if need_cls else None,
    )


strided_conv_op.register_autograd(_gradients, setup_context=_save)


@overload
def strided_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, cls: None = None, backend: str | None = None
) -> Tensor: ...


@overload
def strided_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, cls: Tensor, backend: str | None = None
) -> tuple[Tensor, Tensor]: ...


@with_reference(strided_conv_reference)
def strided_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    cls: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Depthwise convolution with kernel = stride: each window becomes one token (LiteFrame, arXiv 2605.17260).

    Args:
        x: patch tokens `[B,T,H,W,C]`, contiguous or a strided view such as `tokens[:, :, 1:].unflatten(2, (H, W))`.
        weight: `[C,kt,kh,kw]`; kt, kh and kw divide T, H and W. Sums are kept in float32 (float64 for float64).
        bias: `[C]` or None.
        cls: `[B,T,C]`, one token a frame. It counts as constant over space, so the kernel summed over its
            spatial taps acts on it.
        backend: None (Triton on CUDA, reference elsewhere), "triton" or "reference".

    Returns:
        `[B,T/kt,H/kh,W/kw,C]`; with cls the pair of it and `[B,T/kt,C]`.

    Raises:
        ValueError: shapes that do not fit or do not divide, a dtype that is no supported float.
    """
    _check(x, weight, bias, cls)
    if use_triton("strided_conv", x, backend):
        y, cls_y = strided_conv_op(x, weight, bias, cls)
        return y if cls is None else (y, cls_y)
    return strided_conv_reference(x, weight, bias, cls=cls)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, cls: Tensor | None) -> None:
    name = "strided_conv"
    if x.ndim != 5:
        raise ValueError(f"{name}: x has shape {tuple(x.shape)}, expected [B,T,H,W,C]")
    if weight.ndim != 4 or weight.shape[0] != x.shape[4] or 0 in weight.shape[1:]:
        raise ValueError(f"{name}: weight has shape {tuple(weight.shape)}, expected [C,kt,kh,kw] with C={x.shape[4]}")
    for axis, size, stride in zip("THW", x.shape[1:4], weight.shape[1:], strict=True):
        if size % stride:
            raise ValueError(f"{name}: {axis}={size} is not a multiple of its stride {stride}; pad the input first")
    check_shape(name, "bias", bias, (x.shape[4],))
    check_shape(name, "cls", cls, (x.shape[0], x.shape[1], x.shape[4]))
    check_floating(name, x=x, weight=weight, bias=bias, cls=cls)
    if cls is not None and cls.dtype != x.dtype:
        raise ValueError(f"{name}: cls is {cls.dtype} and x is {x.dtype}; both must have one dtype")
