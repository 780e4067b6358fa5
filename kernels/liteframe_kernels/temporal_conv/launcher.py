"""Launching the depthwise temporal convolution: configurations, grids, memory, the second stage of the sums."""

import torch
import triton
from torch import Tensor

from liteframe_kernels.launch import TunedKernel, channel_block, rows_of, wide
from liteframe_kernels.precision import accumulator
from liteframe_kernels.temporal_conv.triton import temporal_conv_backward_kernel, temporal_conv_forward_kernel

FORWARD = TunedKernel(
    temporal_conv_forward_kernel,
    [
        triton.Config({"TILE": 1024, "BT": 8}, num_warps=4),
        triton.Config({"TILE": 1024, "BT": 16}, num_warps=4),
        triton.Config({"TILE": 512, "BT": 8}, num_warps=2),
    ],
    key=("C", "K", "RESIDUAL", "PACKED"),
)
# SPAN: frames x token blocks that a program walks, which fixes the order of the sums. Three taps fit in 128 registers.
BACKWARD = TunedKernel(
    temporal_conv_backward_kernel,
    [triton.Config({"TILE": 1024, "BT": 2, "SPAN": 128}, num_warps=4, maxnreg=128)],
)
BACKWARD_WIDE = TunedKernel(
    temporal_conv_backward_kernel, [triton.Config({"TILE": 1024, "BT": 1, "SPAN": 128}, num_warps=4)]
)


def clip_borders(cu_seqlens: Tensor | None, frames: int) -> tuple[Tensor | None, Tensor | None]:
    """First frame of the clip of each frame, and the frame after its last: int32 `[T]`, computed on the device."""
    if cu_seqlens is None:
        return None, None
    at = torch.arange(frames, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    clip = torch.searchsorted(cu_seqlens, at, right=True).clamp(1, len(cu_seqlens) - 1)
    return cu_seqlens[clip - 1].int(), cu_seqlens[clip].int()


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, cu_seqlens: Tensor | None, residual: bool, causal: bool
) -> Tensor:
    """Launch the forward kernel; arguments as in `temporal_conv`."""
    batch, frames, tokens, channels = x.shape
    y = x.new_empty(x.shape)
    if y.numel() == 0:
        return y
    x = rows_of(x)
    taps = weight.shape[1]
    first, last = clip_borders(cu_seqlens, frames)
    block = channel_block(channels)
    FORWARD.launch(
        lambda meta: (
            batch
            * triton.cdiv(channels, block)
            * triton.cdiv(frames, meta["BT"])
            * triton.cdiv(tokens, meta["TILE"] // block)
        ),
        x.device,
        p_x=x, p_w=weight.t().contiguous(), p_b=bias, p_first=first, p_last=last, p_y=y,
        T=frames, N=tokens, C=channels, stride_b=x.stride(0), stride_t=x.stride(1), stride_n=x.stride(2),
        K=taps, LEFT=taps - 1 if causal else taps // 2, BIAS=bias is not None, RESIDUAL=residual,
        PACKED=cu_seqlens is not None, ACC=wide(x), BC=block,
    )  # fmt: skip
    return y


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    cu_seqlens: Tensor | None,
    residual: bool,
    causal: bool,
    need_dx: bool,
    need_dw: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; those not needed are empty tensors."""
    batch, frames, tokens, channels = x.shape
    taps = weight.shape[1]
    dx = x.new_empty(x.shape if need_dx else (0,))
    sums = x.new_zeros((taps + 1, channels), dtype=accumulator(x.dtype))  # of the bias, then of each tap
    if x.numel() == 0:
        return dx, *_parameter_gradients(sums, need_dw)
    grad, x = rows_of(grad), rows_of(x)
    first, last = clip_borders(cu_seqlens, frames)
    block = channel_block(channels)
    kernel = BACKWARD if taps <= 3 else BACKWARD_WIDE
    meta = kernel.configs[0].kwargs
    spans = triton.cdiv(frames, meta["SPAN"])
    token_blocks = triton.cdiv(tokens, meta["TILE"] // block)
    per_program = min(token_blocks, max(1, meta["SPAN"] // frames))
    parts = batch * spans * triton.cdiv(token_blocks, per_program)
    partial = sums.new_empty((parts, *sums.shape) if need_dw else (0,))
    kernel.launch(
        lambda meta: parts * triton.cdiv(channels, block),
        x.device,
        p_g=grad, p_x=x, p_w=weight.t().contiguous(), p_first=first, p_last=last, p_dx=dx, p_part=partial,
        T=frames, N=tokens, C=channels, n_span=spans, blocks_per_program=per_program,
        g_stride_b=grad.stride(0), g_stride_t=grad.stride(1), g_stride_n=grad.stride(2),
        x_stride_b=x.stride(0), x_stride_t=x.stride(1), x_stride_n=x.stride(2),
        K=taps, LEFT=taps - 1 if causal else taps // 2, RESIDUAL=residual, PACKED=cu_seqlens is not None,
        NEED_DX=need_dx, NEED_DW=need_dw, ACC=wide(x), BC=block,
    )  # fmt: skip
    return dx, *_parameter_gradients(partial.sum(0) if need_dw else sums, need_dw)


def _parameter_gradients(sums: Tensor, need_dw: bool) -> tuple[Tensor, Tensor]:
    """Sums `[1+k,C]` as gradients of the weight `[C,k]` and the bias `[C]`: new tensors, empty where not needed."""
    if not need_dw:
        return sums.new_empty((0, 0)), sums.new_empty((0,))
    return sums[1:].t().clone(memory_format=torch.contiguous_format), sums[0].clone()
