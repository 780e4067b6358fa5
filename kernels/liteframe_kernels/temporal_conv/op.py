"""Depthwise temporal convolution: custom ops, their gradients, and the public function."""

from typing import Any

import torch
from torch import Tensor

from liteframe_kernels.backend import check_floating, check_shape, use_triton, with_reference
from liteframe_kernels.precision import accumulator
from liteframe_kernels.temporal_conv.reference import temporal_conv_reference


@torch.library.custom_op("liteframe_kernels::temporal_conv", mutates_args=())
def temporal_conv_op(x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool) -> Tensor:
    """Triton forward; see `temporal_conv`."""
    from liteframe_kernels.temporal_conv import triton

    return triton.forward(x, weight, bias, residual)


@torch.library.custom_op("liteframe_kernels::temporal_conv_backward", mutates_args=())
def temporal_conv_backward_op(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    residual: bool,
    need_dx: bool,
    need_dw: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Triton backward: gradients of x, weight and bias in accumulator precision, empty where not needed."""
    from liteframe_kernels.temporal_conv import triton

    return triton.backward(grad, x, weight, residual, need_dx, need_dw)


@temporal_conv_op.register_fake
def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool) -> Tensor:
    return x.new_empty(x.shape)


@temporal_conv_backward_op.register_fake
def _backward_fake(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    residual: bool,
    need_dx: bool,
    need_dw: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dx = x.new_empty(x.shape if need_dx else (0,))
    shape = weight.shape if need_dw else (0, 0)
    dtype = accumulator(x.dtype)
    return dx, x.new_empty(shape, dtype=dtype), x.new_empty(shape[0], dtype=dtype)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, bias, ctx.residual = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    dx, dw, db = temporal_conv_backward_op(grad, x, weight, ctx.residual, need_x, need_weight or need_bias)
    return (
        dx if need_x else None,
        dw.to(weight.dtype) if need_weight else None,
        db.to(ctx.bias_dtype) if need_bias else None,
        None,
    )


temporal_conv_op.register_autograd(_gradients, setup_context=_save)


@with_reference(temporal_conv_reference)
def temporal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Depthwise convolution of every token along time (LiteFrame, arXiv 2605.17260: "DW temporal conv").

    Args:
        x: tokens `[B,T,N,C]`, contiguous or a strided view; bfloat16, float16, float32 or float64.
        weight: taps `[C,k]`, k odd, centered on the frame. Sums are kept in float32 (float64 for float64 input).
        bias: `[C]` or None.
        residual: return `x + conv(x)`, rounded once.
        backend: None (Triton on CUDA, reference elsewhere), "triton" or "reference".

    Returns:
        `[B,T,N,C]`, in the dtype of x. Frames outside the clip count as zero.

    Raises:
        ValueError: shapes that do not fit, an even k, a dtype that is no supported float.
    """
    _check(x, weight, bias)
    if use_triton("temporal_conv", x, backend):
        return temporal_conv_op(x, weight, bias, residual)
    return temporal_conv_reference(x, weight, bias, residual=residual)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    name = "temporal_conv"
    if x.ndim != 4:
        raise ValueError(f"{name}: x has shape {tuple(x.shape)}, expected [B,T,N,C]")
    if weight.ndim != 2 or weight.shape[0] != x.shape[3]:
        raise ValueError(f"{name}: weight has shape {tuple(weight.shape)}, expected [C,k] with C={x.shape[3]}")
    if weight.shape[1] % 2 == 0:
        raise ValueError(f"{name}: kernel size is {weight.shape[1]}; it must be odd, so that a tap lies on each frame")
    check_shape(name, "bias", bias, (x.shape[3],))
    check_floating(name, x=x, weight=weight, bias=bias)
