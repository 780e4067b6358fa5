"""Launching weighted average pooling: configurations, grids, memory, the second stage of the sums."""

import torch
import triton
from torch import Tensor

from liteframe_kernels.launch import TunedKernel, channel_block, rows_of, wide
from liteframe_kernels.precision import accumulator
from liteframe_kernels.weighted_average_pool.triton import (
    query_gradient_kernel,
    weighted_average_pool_backward_kernel,
    weighted_average_pool_forward_kernel,
)

FORWARD = TunedKernel(weighted_average_pool_forward_kernel, [triton.Config({}, num_warps=8)])
BACKWARD = TunedKernel(weighted_average_pool_backward_kernel, [triton.Config({}, num_warps=8)])
QUERY_GRADIENT = TunedKernel(query_gradient_kernel, [triton.Config({"BN": 8}, num_warps=4)])
REGISTER_TILE = 16384  # members x channels that 8 warps hold without spilling
STREAM_TILE = 4096


def forward(
    patches: Tensor, query: Tensor | None, logits: Tensor | None, frame_mask: Tensor | None, kernel: list[int]
) -> tuple[Tensor, Tensor]:
    """Launch the forward kernel: pooled tokens, and the weight of each token `[B,T,h,w]`."""
    batch, frames, height, width, channels = patches.shape
    y = patches.new_empty((batch, frames // kernel[0], height // kernel[1], width // kernel[2], channels))
    weights = patches.new_empty(patches.shape[:4], dtype=accumulator(patches.dtype))
    if patches.numel() == 0:
        return y, weights.zero_()
    patches = rows_of(patches)
    arguments = _arguments(patches, query, logits, frame_mask, kernel)
    tile = max(1, channel_block(channels, REGISTER_TILE)) * arguments["MB"]
    single = tile <= REGISTER_TILE
    FORWARD.launch(
        lambda meta: weights.numel() // arguments["M"],
        patches.device,
        p_p=patches, p_y=y, p_w=weights, **arguments,
        BC=channel_block(channels, max(1, (REGISTER_TILE if single else STREAM_TILE) // arguments["MB"])),
        SINGLE=single,
    )  # fmt: skip
    return y, weights


def backward(
    grad: Tensor,
    patches: Tensor,
    query: Tensor | None,
    logits: Tensor | None,
    frame_mask: Tensor | None,
    weights: Tensor,
    kernel: list[int],
    need_patches: bool,
    need_query: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of patches, query and logits; those not needed are empty tensors."""
    batch, frames, height, width, channels = patches.shape
    given = query is not None or logits is not None
    dp = patches.new_empty(patches.shape if need_patches else (0,))
    dq = patches.new_empty((batch, frames, channels) if need_query else (0,))
    dl = weights.new_zeros(weights.shape if given else (0,))
    if patches.numel() == 0:
        return dp, dq.zero_(), dl
    patches = rows_of(patches)
    arguments = _arguments(patches, query, logits, frame_mask, kernel)
    BACKWARD.launch(
        lambda meta: weights.numel() // arguments["M"],
        patches.device,
        p_g=grad.contiguous(), p_p=patches, p_w=weights, p_dp=dp, p_dl=dl, **arguments, NEED_DP=need_patches,
        BC=channel_block(channels, max(1, STREAM_TILE // arguments["MB"])),
    )  # fmt: skip
    if need_query:
        block = channel_block(channels, 128)
        QUERY_GRADIENT.launch(
            lambda meta: batch * frames * triton.cdiv(channels, block),
            patches.device,
            p_dl=dl, p_p=patches, p_dq=dq, T=frames, H=height, W=width, C=channels, SCALE=channels**-0.5,
            **_strides(patches), ACC=wide(patches), BC=block,
        )  # fmt: skip
    return dp, dq, dl


def _arguments(
    patches: Tensor, query: Tensor | None, logits: Tensor | None, frame_mask: Tensor | None, kernel: list[int]
) -> dict:
    """Arguments that the forward and the backward kernel share."""
    members = kernel[0] * kernel[1] * kernel[2]
    query = None if query is None else rows_of(query)
    q_strides = (0, 0) if query is None else query.stride()[:2]
    return {
        "p_q": query,
        "p_l": None if logits is None else logits.contiguous(),
        "p_mask": None if frame_mask is None else frame_mask.contiguous().view(torch.uint8),
        "TO": patches.shape[1] // kernel[0], "HO": patches.shape[2] // kernel[1], "WO": patches.shape[3] // kernel[2],
        "C": patches.shape[4], "SCALE": patches.shape[4] ** -0.5,
        **_strides(patches), "q_stride_b": q_strides[0], "q_stride_t": q_strides[1],
        "QUERY": query is not None, "LOGITS": logits is not None, "MASK": frame_mask is not None,
        "M": members, "MB": triton.next_power_of_2(members), "KT": kernel[0], "KH": kernel[1], "KW": kernel[2],
        "ACC": wide(patches),
    }  # fmt: skip


def _strides(patches: Tensor) -> dict[str, int]:
    return dict(zip(("stride_b", "stride_t", "stride_h", "stride_w"), patches.stride(), strict=False))
