"""Public function: depthwise convolution with kernel = stride."""

from typing import overload

from torch import Tensor

from liteframe_kernels.backend import check_floating, check_shape, use_triton, with_reference
from liteframe_kernels.strided_conv.reference import strided_conv_reference


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
    use_triton("strided_conv", x, backend)
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
