# mypy: disable-error-code="assignment, var-annotated"
"""Weighted average pooling in Triton: logits, softmax in the block and weighted sum in one pass over the tokens.

    l_m = query of the member's frame . p_m / sqrt(C), or given;  w = softmax(l);  out = sum_m w_m p_m
    a_m = g . p_m;  dl_m = w_m (a_m - sum_m w_m a_m);  dp_m = w_m g + dl_m query / sqrt(C)
    dquery[b,t] = sum over the frame of dl_m p_m / sqrt(C)

A program owns one block: MB members x BC channels, held in registers between the logits and the sum (SINGLE); where
the channels do not fit, it walks over them twice and the second read comes from the cache. The weights, 4 bytes a
token, are kept for the backward pass. No kernel here is tuned: every one sums across threads.
"""

import triton
import triton.language as tl


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


@triton.jit
def weighted_average_pool_forward_kernel(
    p_p, p_q, p_l, p_mask, p_y, p_w,
    TO, HO, WO, C, stride_b, stride_t, stride_h, stride_w, q_stride_b, q_stride_t,
    SCALE: tl.constexpr, QUERY: tl.constexpr, LOGITS: tl.constexpr, MASK: tl.constexpr,
    M: tl.constexpr, MB: tl.constexpr, KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    ACC: tl.constexpr, BC: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    """One program: one block, pooled, and the weights of its members."""
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
    tl.store(p_w + o_token, b_w, mask=m_m)
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


@triton.jit
def weighted_average_pool_backward_kernel(
    p_g, p_p, p_q, p_l, p_mask, p_w, p_dp, p_dl,
    TO, HO, WO, C, stride_b, stride_t, stride_h, stride_w, q_stride_b, q_stride_t,
    SCALE: tl.constexpr, QUERY: tl.constexpr, LOGITS: tl.constexpr, MASK: tl.constexpr,
    M: tl.constexpr, MB: tl.constexpr, KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, NEED_DP: tl.constexpr,
    ACC: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """One program: gradients of the members of one block and of their logits."""
    i = tl.program_id(0)
    m_m, i_b, i_t, i_h, i_w = block_members(i, TO, HO, WO, M, MB, KT, KH, KW)
    o_token = ((i_b * TO * KT + i_t) * HO * KH + i_h) * WO * KW + i_w
    o_p = i_b * stride_b + i_t * stride_t + i_h * stride_h + i_w * stride_w
    o_q = i_b * q_stride_b + i_t * q_stride_t
    b_w = tl.load(p_w + o_token, mask=m_m, other=0.0)
    b_dl = tl.zeros([MB], ACC)
    if QUERY or LOGITS:
        for i_c in range(tl.cdiv(C, BC)):
            o_c = i_c * BC + tl.arange(0, BC)
            m = m_m[:, None] & (o_c < C)[None, :]
            b_g = tl.load(p_g + i.to(tl.int64) * C + o_c, mask=o_c < C, other=0.0).to(ACC)
            b_p = tl.load(p_p + o_p[:, None] + o_c[None, :], mask=m, other=0.0).to(ACC)
            b_dl += tl.sum(b_p * b_g[None, :], 1)
        b_dl = b_w * (b_dl - tl.sum(b_w * b_dl, 0))
        # the uniform weights of a block without members do not depend on its logits
        alive = m_m
        if MASK:
            alive = alive & (tl.load(p_mask + i_b * TO * KT + i_t, mask=m_m, other=0) != 0)
        if LOGITS:
            alive = alive & (tl.load(p_l + o_token, mask=m_m, other=0.0).to(ACC) > float("-inf"))
        b_dl = tl.where(tl.max(alive.to(tl.int32), 0) > 0, b_dl, 0.0)
        tl.store(p_dl + o_token, b_dl, mask=m_m)
    if NEED_DP:
        o_dp = o_token * C
        for i_c in range(tl.cdiv(C, BC)):
            o_c = i_c * BC + tl.arange(0, BC)
            m = m_m[:, None] & (o_c < C)[None, :]
            b_g = tl.load(p_g + i.to(tl.int64) * C + o_c, mask=o_c < C, other=0.0).to(ACC)
            b_dp = b_w[:, None] * b_g[None, :]
            if QUERY:
                b_q = tl.load(p_q + o_q[:, None] + o_c[None, :], mask=m, other=0.0).to(ACC)
                b_dp += (b_dl * SCALE)[:, None] * b_q
            tl.store(p_dp + o_dp[:, None] + o_c[None, :], b_dp.to(p_dp.dtype.element_ty), mask=m)


@triton.jit
def query_gradient_kernel(
    p_dl, p_p, p_dq, T, H, W, C, stride_b, stride_t, stride_h, stride_w,
    SCALE: tl.constexpr, ACC: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """One program: BC channels of the gradient of one frame's query."""
    n_c = tl.cdiv(C, BC)
    i_frame = (tl.program_id(0) // n_c).to(tl.int64)
    o_c = tl.program_id(0) % n_c * BC + tl.arange(0, BC)
    p_frame = p_p + i_frame // T * stride_b + i_frame % T * stride_t + o_c[None, :]
    b_dq = tl.zeros([BN, BC], ACC)
    for i_n in range(tl.cdiv(H * W, BN)):
        o_n = i_n * BN + tl.arange(0, BN)
        m_n = o_n < H * W
        b_dl = tl.load(p_dl + i_frame * H * W + o_n, mask=m_n, other=0.0)
        o_p = (o_n // W).to(tl.int64) * stride_h + (o_n % W).to(tl.int64) * stride_w
        b_p = tl.load(p_frame + o_p[:, None], mask=m_n[:, None] & (o_c < C)[None, :], other=0.0).to(ACC)
        b_dq += b_dl[:, None] * b_p
    tl.store(p_dq + i_frame * C + o_c, (tl.sum(b_dq, 0) * SCALE).to(p_dq.dtype.element_ty), mask=o_c < C)
