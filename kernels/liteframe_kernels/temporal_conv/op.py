"""Public function: depthwise temporal convolution."""

import torch
from torch import Tensor

from liteframe_kernels.backend import check_floating, check_shape, use_triton, with_reference
from liteframe_kernels.temporal_conv.reference import temporal_conv_reference


@with_reference(temporal_conv_reference)
def temporal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: bool = False,
    causal: bool = False,
    cu_seqlens: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Depthwise convolution of every token along time (LiteFrame, arXiv 2605.17260: "DW temporal conv").

    Args:
        x: tokens `[B,T,N,C]`, contiguous or a strided view; bfloat16, float16, float32 or float64.
        weight: taps `[C,k]`, k odd. Sums are kept in float32 (float64 for float64 input).
        bias: `[C]` or None.
        residual: return `x + conv(x)`, rounded once.
        causal: taps look back only (frames t-k+1 .. t); otherwise they are centred on t.
        cu_seqlens: `[S+1]` int32 or int64, borders of the clips packed along T: 0, ..., T, not decreasing.
            No tap crosses a border. Values are checked for CPU tensors only: a check on a GPU would wait for it.
        backend: None (Triton on CUDA, reference elsewhere), "triton" or "reference".

    Returns:
        `[B,T,N,C]`, in the dtype of x. Frames outside the clip count as zero.

    Raises:
        ValueError: shapes that do not fit, an even k, a dtype that is no supported float, wrong borders.
    """
    _check(x, weight, bias, cu_seqlens)
    use_triton("temporal_conv", x, backend)
    return temporal_conv_reference(x, weight, bias, residual=residual, causal=causal, cu_seqlens=cu_seqlens)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, cu_seqlens: Tensor | None) -> None:
    name = "temporal_conv"
    if x.ndim != 4:
        raise ValueError(f"{name}: x has shape {tuple(x.shape)}, expected [B,T,N,C]")
    if weight.ndim != 2 or weight.shape[0] != x.shape[3]:
        raise ValueError(f"{name}: weight has shape {tuple(weight.shape)}, expected [C,k] with C={x.shape[3]}")
    if weight.shape[1] % 2 == 0:
        raise ValueError(f"{name}: kernel size is {weight.shape[1]}; it must be odd, so that a tap lies on each frame")
    check_shape(name, "bias", bias, (x.shape[3],))
    check_floating(name, x=x, weight=weight, bias=bias)
    if cu_seqlens is not None:
        _check_borders(cu_seqlens, x.shape[1])


def _check_borders(cu_seqlens: Tensor, frames: int) -> None:
    if cu_seqlens.ndim != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64) or len(cu_seqlens) < 1:
        raise ValueError(
            f"temporal_conv: cu_seqlens is {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}, expected int32 or int64 [S+1]"
        )
    if cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling():
        borders = cu_seqlens.tolist()
        if borders[0] != 0 or borders[-1] != frames or borders != sorted(borders):
            raise ValueError(f"temporal_conv: cu_seqlens is {borders}, expected 0, ..., T={frames}, not decreasing")
