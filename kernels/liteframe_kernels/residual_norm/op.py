"""Residual sum, temporal convolution and LayerNorm: custom ops, their gradients, and the public function."""

from typing import Any

import torch
from torch import Tensor

from liteframe_kernels.backend import check_floating, check_shape, use_triton, with_reference
from liteframe_kernels.precision import accumulator
from liteframe_kernels.residual_norm.reference import residual_norm_reference


@torch.library.custom_op("liteframe_kernels::residual_norm", mutates_args=())
def residual_norm_op(
    x: Tensor,
    branch: Tensor,
    scale: Tensor | None,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Triton forward; see `residual_norm`. The last two outputs `[B,T,N]` are the mean and 1 / std of each token."""
    from liteframe_kernels.residual_norm import triton

    return triton.forward(x, branch, scale, conv_weight, conv_bias, norm_weight, norm_bias, eps)


@torch.library.custom_op("liteframe_kernels::residual_norm_backward", mutates_args=())
def residual_norm_backward_op(
    grad_stream: Tensor,
    grad_normalized: Tensor,
    x: Tensor,
    branch: Tensor,
    scale: Tensor | None,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    norm_weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Triton backward: gradients of x and branch, and `[parameters,C]` of the vectors in accumulator precision.

    Without a convolution `x` is the stream, which needs no second reading of what it is the sum of.
    The rows: weight and bias of the norm, scale, bias of the convolution, its taps; what is None has no row, but a
    convolution without bias has one for it.
    """
    from liteframe_kernels.residual_norm import triton

    return triton.backward(
        grad_stream, grad_normalized, x, branch, scale, conv_weight, conv_bias, norm_weight, mean, rstd
    )


@residual_norm_op.register_fake
def _fake(
    x: Tensor,
    branch: Tensor,
    scale: Tensor | None,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    statistics = [x.new_empty(x.shape[:3], dtype=accumulator(x.dtype)) for _ in range(2)]
    return x.new_empty(x.shape), branch.new_empty(x.shape), statistics[0], statistics[1]


@residual_norm_backward_op.register_fake
def _backward_fake(
    grad_stream: Tensor,
    grad_normalized: Tensor,
    x: Tensor,
    branch: Tensor,
    scale: Tensor | None,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    norm_weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = 2 + (scale is not None) + (0 if conv_weight is None else 1 + conv_weight.shape[1])
    sums = x.new_empty((rows, x.shape[3]), dtype=accumulator(x.dtype))
    return x.new_empty(x.shape), branch.new_empty(x.shape), sums


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    x, branch, scale, conv_weight, conv_bias, norm_weight, norm_bias, _ = inputs
    stream, _, mean, rstd = output
    ctx.norm_bias_dtype = norm_bias.dtype
    ctx.set_materialize_grads(False)
    kept = stream if conv_weight is None else x
    ctx.save_for_backward(kept, branch, scale, conv_weight, conv_bias, norm_weight, mean, rstd)


def _gradients(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    x, branch, scale, conv_weight, conv_bias, norm_weight, mean, rstd = ctx.saved_tensors
    grad_stream, grad_normalized = (
        like.new_zeros(x.shape) if grad is None else grad for grad, like in zip(grads, (x, branch), strict=False)
    )
    dx, dbranch, sums = residual_norm_backward_op(
        grad_stream, grad_normalized, x, branch, scale, conv_weight, conv_bias, norm_weight, mean, rstd
    )
    dscale = dconv = dconv_bias = None
    first = 2
    if scale is not None:
        dscale, first = sums[2].to(scale.dtype), 3
    if conv_weight is not None:
        dconv = sums[first + 1 :].t().to(conv_weight.dtype)
        dconv_bias = None if conv_bias is None else sums[first].to(conv_bias.dtype)
    dweight, dbias = sums[0].to(norm_weight.dtype), sums[1].to(ctx.norm_bias_dtype)
    return dx, dbranch, dscale, dconv, dconv_bias, dweight, dbias, None


residual_norm_op.register_autograd(_gradients, setup_context=_save)


@with_reference(residual_norm_reference)
def residual_norm(
    x: Tensor,
    branch: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    eps: float,
    scale: Tensor | None = None,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """What a block of a ViT does between two matrix products, in one pass over its tokens.

    `z = x + scale * branch; stream = z + conv(z); normalized = LayerNorm(stream)`: LayerScale and residual
    (arXiv 2103.17239), depthwise temporal convolution (LiteFrame, arXiv 2605.17260), LayerNorm (arXiv 1607.06450).

    Args:
        x: the residual stream `[B,T,N,C]`, contiguous or a strided view; bfloat16, float16, float32 or float64.
        branch: what attention or MLP gave `[B,T,N,C]`, within autocast in another dtype than x.
        norm_weight: of LayerNorm `[C]`.
        norm_bias: of LayerNorm `[C]`.
        eps: of LayerNorm.
        scale: LayerScale `[C]`, or None for 1.
        conv_weight: taps `[C,k]`, k odd, centered on the frame; None for no convolution. Frames outside count as zero.
        conv_bias: `[C]` or None.
        backend: None (Triton on CUDA, reference elsewhere), "triton" or "reference".

    Returns:
        The new stream `[B,T,N,C]` in the wider dtype of x and branch, and it normalized in that of branch. Sums are in
        float32 (float64 for float64 input); the kernels round each output once.

    Raises:
        ValueError: shapes that do not fit, an even k, a bias without taps, a dtype that is no supported float.
    """
    _check(x, branch, norm_weight, norm_bias, scale, conv_weight, conv_bias)
    x = x.to(torch.promote_types(x.dtype, branch.dtype))
    if use_triton("residual_norm", x, backend):
        stream, normalized, _, _ = residual_norm_op(
            x, branch, scale, conv_weight, conv_bias, norm_weight, norm_bias, eps
        )
        return stream, normalized
    return residual_norm_reference(
        x, branch, norm_weight, norm_bias, eps=eps, scale=scale, conv_weight=conv_weight, conv_bias=conv_bias
    )


def _check(
    x: Tensor,
    branch: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    scale: Tensor | None,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
) -> None:
    name = "residual_norm"
    if x.ndim != 4:
        raise ValueError(f"{name}: x has shape {tuple(x.shape)}, expected [B,T,N,C]")
    channels = x.shape[3]
    check_shape(name, "branch", branch, tuple(x.shape))
    vectors = {"norm_weight": norm_weight, "norm_bias": norm_bias, "scale": scale, "conv_bias": conv_bias}
    for vector, tensor in vectors.items():
        check_shape(name, vector, tensor, (channels,))
    if conv_weight is None and conv_bias is not None:
        raise ValueError(f"{name}: conv_bias without conv_weight; pass both or neither")
    if conv_weight is not None and (conv_weight.ndim != 2 or conv_weight.shape[0] != channels):
        raise ValueError(f"{name}: conv_weight has shape {tuple(conv_weight.shape)}, expected [C,k] with C={channels}")
    if conv_weight is not None and conv_weight.shape[1] % 2 == 0:
        raise ValueError(f"{name}: kernel size is {conv_weight.shape[1]}; it must be odd, so a tap lies on each frame")
    check_floating(name, x=x, branch=branch, conv_weight=conv_weight, **vectors)
