# ruff: noqa: RUF005 - the Triton compiler knows concatenation of tuples, not unpacking
# mypy: disable-error-code="assignment, var-annotated, misc"
"""Residual sum, temporal convolution and LayerNorm in Triton.

    z[t] = x[t] + scale * branch[t]
    u[t] = z[t] + bias + sum_j w[j] * z[t+j-left],   xhat[t] = (u[t] - mean[t]) * rstd[t]
    h[t] = norm_weight * xhat[t] + norm_bias

    du[t] = g_u[t] + rstd * (q - mean(q) - xhat * mean(q * xhat)),  q = norm_weight * g_h[t]
    dz[t] = du[t] + sum_j w[j] * du[t+left-j],   dx = dz,   dbranch = scale * dz

A program owns BN tokens with all their channels and walks along time with the last K frames in registers: 4 passes
forward (read x and branch, write u and h), 6 backward with a convolution (read g_u, g_h, x, branch, write dx, dbranch):
u is computed again from z, which the gradient of the taps needs anyway. Without one, u is read in the place of x.
The sums of the parameters' gradients take two stages: each program writes one partial sum, a second kernel adds them in
fixed order.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from liteframe_kernels.launch import COUNTS, TunedKernel, rows_of, share, wide
from liteframe_kernels.precision import accumulator


@triton.jit
def load_frame(p, o, i_t, T, N, stride_t, o_n, m_c, ACC: tl.constexpr):
    """Tokens of frame i_t, zero outside [0, T)."""
    inside = tl.where((i_t >= 0) & (i_t < T), N, 0)
    b = tl.load(p + i_t.to(tl.int64) * stride_t + o, mask=(o_n[:, None] < inside) & m_c, other=0.0)
    return b.to(ACC)


@triton.jit
def load_vector(p, o_c, C, ACC: tl.constexpr):
    """A parameter as `[1,BC]`."""
    return tl.load(p + o_c, mask=o_c < C, other=0.0).to(ACC)[None, :]


@triton.jit(do_not_specialize=COUNTS)
def residual_norm_forward_kernel(
    p_x, p_a, p_scale, p_w, p_b, p_norm_w, p_norm_b, p_u, p_h, p_mean, p_rstd, eps,
    T, N, C, x_stride_b, x_stride_t, x_stride_n, a_stride_b, a_stride_t, a_stride_n,
    K: tl.constexpr, LEFT: tl.constexpr, CONV: tl.constexpr, BIAS: tl.constexpr, SCALE: tl.constexpr,
    ACC: tl.constexpr, BC: tl.constexpr, TILE: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """One program: BT frames x BN tokens of both outputs."""
    BN: tl.constexpr = TILE // BC
    i = tl.program_id(0)
    n_t, n_n = tl.cdiv(T, BT), tl.cdiv(N, BN)
    i_b = (i // (n_t * n_n)).to(tl.int64)
    t0 = i % n_t * BT
    o_n = i // n_t % n_n * BN + tl.arange(0, BN)
    o_c = tl.arange(0, BC)
    m_c = (o_c < C)[None, :]
    o_x = i_b * x_stride_b + o_n.to(tl.int64)[:, None] * x_stride_n + o_c[None, :]
    o_a = i_b * a_stride_b + o_n.to(tl.int64)[:, None] * a_stride_n + o_c[None, :]
    norm_w, norm_b = load_vector(p_norm_w, o_c, C, ACC), load_vector(p_norm_b, o_c, C, ACC)
    scale = norm_w
    if SCALE:
        scale = load_vector(p_scale, o_c, C, ACC)
    taps = ()
    window = ()
    if CONV:
        for j in tl.static_range(K):
            b_w = load_vector(p_w + j * C, o_c, C, ACC)
            if j == LEFT:
                b_w += tl.where(m_c, 1.0, 0.0).to(ACC)
            taps = taps + (b_w,)
    if BIAS:
        bias = load_vector(p_b, o_c, C, ACC)
    for j in tl.static_range(BT + K - 1):
        i_t = t0 + (j - LEFT)
        b_a = load_frame(p_a, o_a, i_t, T, N, a_stride_t, o_n, m_c, ACC)
        if SCALE:
            b_a *= scale
        window = window + (load_frame(p_x, o_x, i_t, T, N, x_stride_t, o_n, m_c, ACC) + b_a,)
        if j >= K - 1:
            i_t = t0 + (j - (K - 1))
            if CONV:
                b_u = window[0] * taps[0]
                for k in tl.static_range(1, K):
                    b_u += window[k] * taps[k]
            else:
                b_u = window[0]
            if BIAS:
                b_u += bias
            m_n = o_n < tl.where(i_t < T, N, 0)
            i_row = (i_b * T + i_t) * N + o_n
            o_out = i_row[:, None] * C + o_c[None, :]
            m = m_n[:, None] & m_c
            tl.store(p_u + o_out, b_u.to(p_u.dtype.element_ty), mask=m)
            mean = tl.sum(b_u, 1) / C
            b_d = tl.where(m_c, b_u - mean[:, None], 0.0)
            rstd = 1.0 / tl.sqrt(tl.sum(b_d * b_d, 1) / C + eps)
            b_h = b_d * rstd[:, None] * norm_w + norm_b
            tl.store(p_h + o_out, b_h.to(p_h.dtype.element_ty), mask=m)
            tl.store(p_mean + i_row, mean, mask=m_n)
            tl.store(p_rstd + i_row, rstd, mask=m_n)
            window = window[1:]


@triton.jit(do_not_specialize=COUNTS)
def residual_norm_backward_kernel(
    p_g_u, p_g_h, p_x, p_a, p_scale, p_w, p_b, p_norm_w, p_mean, p_rstd, p_dx, p_da, p_part,
    T, N, C, columns, blocks_per_program, x_stride_b, x_stride_t, x_stride_n, a_stride_b, a_stride_t, a_stride_n,
    K: tl.constexpr, LEFT: tl.constexpr, CONV: tl.constexpr, BIAS: tl.constexpr, SCALE: tl.constexpr,
    ACC: tl.constexpr, BC: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One program: all frames of blocks_per_program x BN tokens of dx and dbranch, and its partial sums."""
    BN: tl.constexpr = TILE // BC
    ROWS: tl.constexpr = 2 + SCALE + CONV * (1 + K)
    zero = tl.program_id(0) * 0
    first = tl.program_id(0) * blocks_per_program
    n_n = tl.cdiv(N, BN)
    o_c = tl.arange(0, BC)
    m_c = (o_c < C)[None, :]
    norm_w = load_vector(p_norm_w, o_c, C, ACC)
    scale = norm_w
    if SCALE:
        scale = load_vector(p_scale, o_c, C, ACC)
    bias = tl.zeros([1, BC], ACC)
    if BIAS:
        bias += load_vector(p_b, o_c, C, ACC)
    taps = ()
    if CONV:
        for j in tl.static_range(K):
            b_w = load_vector(p_w + j * C, o_c, C, ACC)
            if j == LEFT:
                b_w += tl.where(m_c, 1.0, 0.0).to(ACC)
            taps = taps + (b_w,)
    sums = ()
    for _ in tl.static_range(ROWS):
        sums = sums + (tl.zeros([BN, BC], ACC),)
    for i_block in range(first, tl.minimum(first + blocks_per_program, columns)):
        i_b = ((zero + i_block) // n_n).to(tl.int64)
        o_n = i_block % n_n * BN + tl.arange(0, BN)
        o_x = i_b * x_stride_b + o_n.to(tl.int64)[:, None] * x_stride_n + o_c[None, :]
        o_a = i_b * a_stride_b + o_n.to(tl.int64)[:, None] * a_stride_n + o_c[None, :]
        o_row = i_b * T * N + o_n
        o_g = o_row[:, None] * C + o_c[None, :]
        stride_t = tl.cast(N, tl.int64) * C
        zs = ()
        dus = ()
        for j in tl.static_range(K - 1):
            i_t = zero + (j - LEFT)
            b_z = load_frame(p_x, o_x, i_t, T, N, x_stride_t, o_n, m_c, ACC)
            b_a = load_frame(p_a, o_a, i_t, T, N, a_stride_t, o_n, m_c, ACC)
            if SCALE:
                b_a *= scale
            zs = zs + (b_z + b_a,)
            dus = dus + (tl.zeros([BN, BC], ACC),)
        for s in range(T + LEFT):
            i_t = zero + s
            b_z = load_frame(p_x, o_x, i_t + LEFT, T, N, x_stride_t, o_n, m_c, ACC)
            if CONV:
                b_a = load_frame(p_a, o_a, i_t + LEFT, T, N, a_stride_t, o_n, m_c, ACC)
                if SCALE:
                    b_a *= scale
                b_z += b_a
            window = zs + (b_z,)
            if CONV:
                b_u = bias + window[0] * taps[0]
                for k in tl.static_range(1, K):
                    b_u += window[k] * taps[k]
            else:
                b_u = b_z
            m_n = o_n < tl.where(i_t < T, N, 0)
            mean = tl.load(p_mean + o_row + i_t.to(tl.int64) * N, mask=m_n, other=0.0)[:, None]
            rstd = tl.load(p_rstd + o_row + i_t.to(tl.int64) * N, mask=m_n, other=0.0)[:, None]
            b_xhat = (b_u - mean) * rstd
            b_g = load_frame(p_g_h, o_g, i_t, T, N, stride_t, o_n, m_c, ACC)
            grown = (sums[0] + b_g * b_xhat, sums[1] + b_g)
            b_q = b_g * norm_w
            along = tl.sum(b_q * b_xhat, 1)[:, None] / C
            b_du = (b_q - tl.sum(b_q, 1)[:, None] / C - b_xhat * along) * rstd
            b_du += load_frame(p_g_u, o_g, i_t, T, N, stride_t, o_n, m_c, ACC)
            grads = dus + (b_du,)
            if CONV:
                b_dz = grads[K - 1] * taps[0]
                for k in tl.static_range(1, K):
                    b_dz += grads[K - 1 - k] * taps[k]
            else:
                b_dz = b_du
            i_out = i_t - LEFT
            if SCALE:
                b_a = load_frame(p_a, o_a, i_out, T, N, a_stride_t, o_n, m_c, ACC)
                grown = grown + (sums[2] + b_dz * b_a,)
            if CONV:
                grown = grown + (sums[2 + SCALE] + b_du,)
                for k in tl.static_range(K):
                    grown = grown + (sums[3 + SCALE + k] + b_du * window[k],)
            sums = grown
            inside = tl.where(i_out >= 0, N, 0)
            m = (o_n[:, None] < inside) & m_c
            o_out = i_out.to(tl.int64) * stride_t + o_g
            tl.store(p_dx + o_out, b_dz.to(p_dx.dtype.element_ty), mask=m)
            if SCALE:
                b_dz *= scale
            tl.store(p_da + o_out, b_dz.to(p_da.dtype.element_ty), mask=m)
            zs = window[1:]
            dus = grads[1:]
    p_row = p_part + tl.program_id(0).to(tl.int64) * ROWS * C + o_c
    for j in tl.static_range(ROWS):
        tl.store(p_row + j * C, tl.sum(sums[j], 0), mask=o_c < C)


TILE = 1024  # elements of a program, more where one token has more
MOST_BLOCKS = 16  # of tokens that a backward program walks, all frames of each
# One configuration each: they sum across threads. Forward, a thread holds 8 channels of 16 bits or 4 of 32; backward, 4
# or 2, since it holds the sums of the taps, too: so all fits in 128 registers.
FORWARD = TunedKernel(residual_norm_forward_kernel, [triton.Config({}, num_warps=4)])
FORWARD_WIDE = TunedKernel(residual_norm_forward_kernel, [triton.Config({}, num_warps=8)])
BACKWARD = TunedKernel(residual_norm_backward_kernel, [triton.Config({}, num_warps=8, maxnreg=128)])
BACKWARD_WIDE = TunedKernel(residual_norm_backward_kernel, [triton.Config({}, num_warps=16)])


def forward(
    x: Tensor,
    branch: Tensor,
    scale: Tensor | None,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the forward kernel; arguments and results as in `residual_norm_op`."""
    batch, frames, tokens, channels = x.shape
    stream, normalized = x.new_empty(x.shape), branch.new_empty(x.shape)
    mean, rstd = (x.new_empty(x.shape[:3], dtype=accumulator(x.dtype)) for _ in range(2))
    if x.numel() == 0:
        return stream, normalized, mean, rstd
    block, tile = blocks(channels)
    taps = _taps(conv_weight)
    each = 8 if frames > 4 else 4 if frames > 1 else 1  # frames of a program; it reads those around them, too
    kernel = FORWARD if tile == TILE and taps <= 3 and branch.element_size() == 2 else FORWARD_WIDE
    kernel.launch(
        lambda meta: batch * triton.cdiv(frames, each) * triton.cdiv(tokens, tile // block),
        x,
        **_given(x, branch, scale, conv_weight, conv_bias), p_norm_w=norm_weight, p_norm_b=norm_bias,
        p_u=stream, p_h=normalized, p_mean=mean, p_rstd=rstd, eps=eps, BT=each,
    )  # fmt: skip
    return stream, normalized, mean, rstd


def backward(
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
    """Launch the backward kernel; arguments and results as in `residual_norm_backward_op`."""
    batch, _, tokens, channels = x.shape
    dx, dbranch = x.new_empty(x.shape), branch.new_empty(x.shape)
    taps = _taps(conv_weight)
    rows = 2 + (scale is not None) + (0 if conv_weight is None else 1 + taps)
    if x.numel() == 0:
        return dx, dbranch, x.new_zeros((rows, channels), dtype=accumulator(x.dtype))
    block, tile = blocks(channels)
    columns = batch * triton.cdiv(tokens, tile // block)
    each = share(columns, resident=2, most=MOST_BLOCKS)
    parts = triton.cdiv(columns, each)
    partial = x.new_empty((parts, rows, channels), dtype=accumulator(x.dtype))
    kernel = BACKWARD if tile == TILE and taps <= 3 else BACKWARD_WIDE
    kernel.launch(
        lambda meta: parts,
        x,
        p_g_u=grad_stream.contiguous(), p_g_h=grad_normalized.contiguous(),
        **_given(x, branch, scale, conv_weight, conv_bias), p_norm_w=norm_weight, p_mean=mean, p_rstd=rstd,
        p_dx=dx, p_da=dbranch, p_part=partial, columns=columns, blocks_per_program=each,
    )  # fmt: skip
    return dx, dbranch, partial.sum(0)


def blocks(channels: int) -> tuple[int, int]:
    """Width of a token in a program, a power of two, and how many elements a program holds."""
    block = triton.next_power_of_2(channels)
    return block, max(TILE, block)


def _taps(conv_weight: Tensor | None) -> int:
    return 1 if conv_weight is None else conv_weight.shape[1]


def _given(
    x: Tensor, branch: Tensor, scale: Tensor | None, conv_weight: Tensor | None, conv_bias: Tensor | None
) -> dict[str, Any]:
    """What both kernels are told of their inputs."""
    x, branch = rows_of(x), rows_of(branch)
    block, tile = blocks(x.shape[3])
    names = ("stride_b", "stride_t", "stride_n")
    taps = _taps(conv_weight)
    return {
        "p_x": x, "p_a": branch, "p_scale": scale, "p_b": conv_bias,
        "p_w": None if conv_weight is None else conv_weight.t().contiguous(),
        "T": x.shape[1], "N": x.shape[2], "C": x.shape[3],
        **{f"x_{name}": stride for name, stride in zip(names, x.stride(), strict=False)},
        **{f"a_{name}": stride for name, stride in zip(names, branch.stride(), strict=False)},
        "K": taps, "LEFT": taps // 2, "CONV": conv_weight is not None, "BIAS": conv_bias is not None,
        "SCALE": scale is not None, "ACC": wide(x), "BC": block, "TILE": tile,
    }  # fmt: skip
