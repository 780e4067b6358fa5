"""Launching the strided convolution: configurations, grids, memory, the second stage of the sums."""

import torch
import triton
from torch import Tensor

from liteframe_kernels.launch import TunedKernel, channel_block, rows_of, wide
from liteframe_kernels.precision import accumulator
from liteframe_kernels.strided_conv.triton import strided_conv_backward_kernel, strided_conv_forward_kernel

FORWARD = TunedKernel(
    strided_conv_forward_kernel,
    [
        triton.Config({"TILE": 1024}, num_warps=4),
        triton.Config({"TILE": 512}, num_warps=2),
    ],
    key=("C", "KT", "KH", "KW"),
)
# The sums of up to four spatial taps fit in 128 registers; BLOCKS fixes their order.
BACKWARD = TunedKernel(
    strided_conv_backward_kernel, [triton.Config({"TILE": 1024, "BLOCKS": 32}, num_warps=4, maxnreg=128)]
)
BACKWARD_WIDE = TunedKernel(strided_conv_backward_kernel, [triton.Config({"TILE": 1024, "BLOCKS": 32}, num_warps=4)])


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, cls: Tensor | None) -> tuple[Tensor, Tensor]:
    """Launch the forward kernel: patch tokens and cls tokens (empty without cls)."""
    batch, channels = x.shape[0], x.shape[4]
    kernel = weight.shape[1:]
    out = [size // stride for size, stride in zip(x.shape[1:4], kernel, strict=True)]
    y = x.new_empty((batch, *out, channels))
    cls_y = x.new_empty((batch, out[0], channels) if cls is not None else (0,))
    if y.numel() == 0 and cls_y.numel() == 0:
        return y, cls_y
    x, cls_rows = rows_of(x), 0 if cls is None else batch * out[0]
    cls = x if cls is None else rows_of(cls)
    rows, block = y.numel() // channels, channel_block(channels)
    FORWARD.launch(
        lambda meta: (
            triton.cdiv(channels, block)
            * (triton.cdiv(rows, meta["TILE"] // block) + triton.cdiv(cls_rows, meta["TILE"] // block))
        ),
        x.device,
        p_x=x, p_cls=cls, p_w=weight.flatten(1).t().contiguous(), p_b=bias, p_y=y, p_cls_y=cls_y,
        rows=rows, cls_rows=cls_rows, TO=out[0], HO=out[1], WO=out[2], C=channels, **strides(x, cls),
        KT=kernel[0], KH=kernel[1], KW=kernel[2], BIAS=bias is not None, CLS=cls_rows > 0, ACC=wide(x), BC=block,
    )  # fmt: skip
    return y, cls_y


def backward(
    grad: Tensor, grad_cls: Tensor, x: Tensor, weight: Tensor, cls: Tensor | None, need_dx: bool, need_dw: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, cls, weight and bias; those not needed are empty tensors."""
    batch, channels = x.shape[0], x.shape[4]
    kernel = weight.shape[1:]
    out = grad.shape[1:4]
    with_cls = cls is not None
    dx = x.new_empty(x.shape if need_dx else (0,))
    dcls = x.new_empty(cls.shape if cls is not None and need_dx else (0,))
    taps = kernel[1] * kernel[2]
    sums = torch.zeros(
        (kernel[0], taps + 1, channels) if need_dw else (0, 1, 0), device=x.device, dtype=accumulator(x.dtype)
    )
    if (grad.numel() > 0 or (with_cls and grad_cls.numel() > 0)) and (need_dx or need_dw):
        x, grad, grad_cls = rows_of(x), grad.contiguous(), grad_cls.contiguous()
        cls = x if cls is None else rows_of(cls)
        block = channel_block(channels)
        kernel_function = BACKWARD if kernel[1] * kernel[2] <= 4 else BACKWARD_WIDE
        meta = kernel_function.configs[0].kwargs
        rows_per_part = meta["TILE"] // block * meta["BLOCKS"]
        rows, cls_rows = grad.numel() // channels, batch * out[0] if with_cls else 0
        parts, cls_parts = triton.cdiv(rows, rows_per_part), triton.cdiv(cls_rows, rows_per_part)
        partial = sums.new_empty((parts + cls_parts, *sums.shape))
        kernel_function.launch(
            lambda meta: (parts + cls_parts) * kernel[0] * triton.cdiv(channels, block),
            x.device,
            p_g=grad, p_g_cls=grad_cls, p_x=x, p_cls=cls, p_w=weight.flatten(1).t().contiguous(),
            p_dx=dx, p_dcls=dcls, p_part=partial,
            rows=rows, cls_rows=cls_rows, TO=out[0], HO=out[1], WO=out[2], C=channels, parts=parts, **strides(x, cls),
            KT=kernel[0], KH=kernel[1], KW=kernel[2], CLS=with_cls, NEED_DX=need_dx, NEED_DW=need_dw,
            ACC=wide(x), BC=block,
        )  # fmt: skip
        sums = partial.sum(0)
    if not need_dw:
        return dx, dcls, sums.new_empty((0,)), sums.new_empty((0,))
    dw = sums[:, 1:].permute(2, 0, 1).clone(memory_format=torch.contiguous_format).view(channels, *kernel)
    return dx, dcls, dw, sums[0, 0].clone()


def strides(x: Tensor, cls: Tensor) -> dict[str, int]:
    """Strides of `[B,T,H,W,C]` and `[B,T,C]` by the names of the kernels."""
    names = ("stride_b", "stride_t", "stride_h", "stride_w")
    return dict(zip(names, x.stride(), strict=False)) | {"cls_stride_b": cls.stride(0), "cls_stride_t": cls.stride(1)}
