# mypy: disable-error-code="assignment, var-annotated"
"""Weighted average pooling in Triton: logits, softmax in the block and weighted sum in one pass over the tokens.

    l_m = query of the member's frame . p_m / sqrt(C), or given;  w = softmax(l);  out = sum_m w_m p_m

A program owns one block: MB members x BC channels, held in registers between the logits and the sum (SINGLE); where
the channels do not fit, it walks over them twice and the second read comes from the cache. Not tuned, for it
sums across threads. There is no backward kernel: targets are pooled without gradients.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from liteframe_kernels.launch import COUNTS, TunedKernel, channel_block, rows_of, wide
from liteframe_kernels.precision import accumulator


@triton.jit
def block_members(
    i, TO, HO, WO, M: tl.constexpr, MB: tl.constexpr, KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr
):
    """Mask, batch, frame, row and column of the members of block i."""
    o_m = tl.arange(0, MB)
    i_w = (i % WO * KW + o_m % KW).to(tl.int64)
    i_h = (i // WO % HO * KH + o_m // KW % KH).to(tl.int64)
    i_t = (i // (WO * HO) % TO * KT + o_m // (KW * KH)).to(tl.int64)
    return o_m < M, (i // (WO * HO * TO)).to(tl.int64), i_t, i_h, i_w


@triton.jit(do_not_specialize=COUNTS)
def weighted_average_pool_forward_kernel(
    p_p, p_q, p_l, p_mask, p_y,
    TO, HO, WO, C, stride_b, stride_t, stride_h, stride_w, q_stride_b, q_stride_t,
    SCALE: tl.constexpr, QUERY: tl.constexpr, LOGITS: tl.constexpr, MASK: tl.constexpr,
    M: tl.constexpr, MB: tl.constexpr, KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    ACC: tl.constexpr, BC: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    """One program: one block, pooled."""
    i = tl.program_id(0)
    m_m, i_b, i_t, i_h, i_w = block_members(i, TO, HO, WO, M, MB, KT, KH, KW)
    o_token = ((i_b * TO * KT + i_t) * HO * KH + i_h) * WO * KW + i_w
    o_p = i_b * stride_b + i_t * stride_t + i_h * stride_h + i_w * stride_w
    o_q = i_b * q_stride_b + i_t * q_stride_t
    o_c = tl.arange(0, BC)
    b_l = tl.zeros([MB], ACC)
    if SINGLE:
        m = m_m[:, None] & (o_c < C)[None, :]
        b_p = tl.load(p_p + o_p[:, None] + o_c[None, :], mask=m, other=0.0)
        if QUERY:
            b_q = tl.load(p_q + o_q[:, None] + o_c[None, :], mask=m, other=0.0).to(ACC)
            b_l += tl.sum(b_p.to(ACC) * b_q, 1) * SCALE
    elif QUERY:
        for i_c in range(tl.cdiv(C, BC)):
            m = m_m[:, None] & (i_c * BC + o_c < C)[None, :]
            b_p = tl.load(p_p + o_p[:, None] + i_c * BC + o_c[None, :], mask=m, other=0.0).to(ACC)
            b_q = tl.load(p_q + o_q[:, None] + i_c * BC + o_c[None, :], mask=m, other=0.0).to(ACC)
            b_l += tl.sum(b_p * b_q, 1) * SCALE
    if LOGITS:
        b_l += tl.load(p_l + o_token, mask=m_m, other=0.0).to(ACC)
    alive = m_m
    if MASK:
        alive = alive & (tl.load(p_mask + i_b * TO * KT + i_t, mask=m_m, other=0) != 0)
    b_l = tl.where(alive, b_l, float("-inf"))
    top = tl.max(b_l, 0)
    empty = top == float("-inf")
    b_e = tl.exp(b_l - tl.where(empty, 0.0, top))
    b_e = tl.where(empty, m_m.to(ACC), b_e)
    b_w = b_e / tl.sum(b_e, 0)
    p_out = p_y + i.to(tl.int64) * C
    if SINGLE:
        b_y = tl.sum(b_p.to(ACC) * b_w[:, None], 0)
        tl.store(p_out + o_c, b_y.to(p_y.dtype.element_ty), mask=o_c < C)
    else:
        for i_c in range(tl.cdiv(C, BC)):
            m = m_m[:, None] & (i_c * BC + o_c < C)[None, :]
            b_p = tl.load(p_p + o_p[:, None] + i_c * BC + o_c[None, :], mask=m, other=0.0).to(ACC)
            b_y = tl.sum(b_p * b_w[:, None], 0)
            tl.store(p_out + i_c * BC + o_c, b_y.to(p_y.dtype.element_ty), mask=i_c * BC + o_c < C)


FORWARD = TunedKernel(weighted_average_pool_forward_kernel, [triton.Config({}, num_warps=8)])
REGISTER_TILE = 16384  # members x channels that 8 warps hold without spilling
STREAM_TILE = 4096


def forward(
    patches: Tensor,
    query: Tensor | None,
    logits: Tensor | None,
    frame_mask: Tensor | None,
    kernel: list[int],
    precise: bool = False,
) -> Tensor:
    """Launch the kernel; arguments as in `weighted_average_pool`."""
    batch, frames, height, width, channels = patches.shape
    grid = (frames // kernel[0], height // kernel[1], width // kernel[2])
    dtype = accumulator(patches.dtype) if precise else patches.dtype
    y = patches.new_empty((batch, *grid, channels), dtype=dtype)  # [B,T/kt,h/kh,w/kw,C]
    if patches.numel() == 0:
        return y
    patches = rows_of(patches)
    query = None if query is None else rows_of(query)
    q_strides = (0, 0) if query is None else query.stride()[:2]
    members = kernel[0] * kernel[1] * kernel[2]
    members_block = triton.next_power_of_2(members)
    single = channel_block(channels, REGISTER_TILE) * members_block <= REGISTER_TILE
    strides = dict(zip(("stride_b", "stride_t", "stride_h", "stride_w"), patches.stride(), strict=False))
    FORWARD.launch(
        lambda meta: patches.numel() // (channels * members),
        patches,
        p_p=patches, p_q=query, p_l=None if logits is None else logits.contiguous(),
        p_mask=None if frame_mask is None else frame_mask.contiguous().view(torch.uint8), p_y=y,
        TO=grid[0], HO=grid[1], WO=grid[2], C=channels, **strides, q_stride_b=q_strides[0], q_stride_t=q_strides[1],
        SCALE=channels**-0.5, QUERY=query is not None, LOGITS=logits is not None, MASK=frame_mask is not None,
        M=members, MB=members_block, KT=kernel[0], KH=kernel[1], KW=kernel[2], SINGLE=single, ACC=wide(patches),
        BC=channel_block(channels, max(1, (REGISTER_TILE if single else STREAM_TILE) // members_block)),
    )  # fmt: skip
    return y
