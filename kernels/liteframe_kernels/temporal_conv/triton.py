# ruff: noqa: RUF005 - the Triton compiler knows concatenation of tuples, not unpacking
# mypy: disable-error-code="assignment, var-annotated"
"""Depthwise temporal convolution in Triton.

    y[b,t,n,c]  = bias[c] + sum_j weight[c,j] * x[b,t+j-left,n,c]  (+ x[b,t,n,c])
    dx[b,t,n,c] = sum_j weight[c,j] * g[b,t+left-j,n,c]            (+ g[b,t,n,c])
    dw[c,j]     = sum_btn x[b,t,n,c] * g[b,t+left-j,n,c],   db[c] = sum_btn g[b,t,n,c]

A program owns BN tokens x BC channels and walks along time with the last K frames in registers, so each element is
read once from memory: 2 passes forward (read x, write y) and 3 backward (read x and g, write dx; performance floor of
a conv that is bound by memory). Frames outside the clip count as zero.
The sums of dw and db take two stages: each program writes one partial sum, a second kernel adds them in fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from liteframe_kernels.launch import COUNTS, TunedKernel, channel_block, rows_of, share, wide
from liteframe_kernels.precision import accumulator


@triton.jit
def load_frame(p_x, o_frame, i_t, T, N, stride_t, o_n, m_c):
    """Tokens of frame i_t, zero outside [0, T)."""
    inside = tl.where((i_t >= 0) & (i_t < T), N, 0)
    p_frame = p_x + i_t.to(tl.int64) * stride_t + o_frame
    return tl.load(p_frame, mask=(o_n[:, None] < inside) & m_c, other=0.0)


@triton.jit(do_not_specialize=COUNTS)
def temporal_conv_forward_kernel(
    p_x, p_w, p_b, p_y,
    T, N, C, stride_b, stride_t, stride_n,
    K: tl.constexpr, LEFT: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    ACC: tl.constexpr, BC: tl.constexpr, TILE: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """One program: BT frames x BN tokens x BC channels of the output."""
    BN: tl.constexpr = TILE // BC
    i = tl.program_id(0)
    n_c, n_t, n_n = tl.cdiv(C, BC), tl.cdiv(T, BT), tl.cdiv(N, BN)
    i_b = (i // (n_c * n_t * n_n)).to(tl.int64)
    o_c = (i % n_c) * BC + tl.arange(0, BC)
    t0 = (i // n_c) % n_t * BT
    o_n = (i // (n_c * n_t)) % n_n * BN + tl.arange(0, BN)
    m_c = (o_c < C)[None, :]
    o_x = i_b * stride_b + o_n.to(tl.int64)[:, None] * stride_n + o_c[None, :]
    o_y = i_b * T * N * C + o_n.to(tl.int64)[:, None] * C + o_c[None, :]
    b_bias = tl.zeros([1, BC], ACC)
    if BIAS:
        b_bias += tl.load(p_b + o_c, mask=o_c < C, other=0.0).to(ACC)[None, :]
    taps = ()
    window = ()
    for j in tl.static_range(K):
        taps = taps + (tl.load(p_w + j * C + o_c, mask=o_c < C, other=0.0).to(ACC)[None, :],)
        if j > 0:
            window = window + (load_frame(p_x, o_x, t0 + (j - 1 - LEFT), T, N, stride_t, o_n, m_c),)
    for s in tl.static_range(BT):
        i_t = t0 + s
        window = window + (load_frame(p_x, o_x, i_t + (K - 1 - LEFT), T, N, stride_t, o_n, m_c),)
        inside = tl.where(i_t < T, N, 0)
        b_y = tl.zeros([BN, BC], ACC) + b_bias
        for j in tl.static_range(K):
            b_y += window[j].to(ACC) * taps[j]
        if RESIDUAL:
            b_y += window[LEFT].to(ACC)
        p_frame = p_y + i_t.to(tl.int64) * N * C + o_y
        tl.store(p_frame, b_y.to(p_y.dtype.element_ty), mask=(o_n[:, None] < inside) & m_c)
        window = window[1:]


@triton.jit(do_not_specialize=COUNTS)
def temporal_conv_backward_kernel(
    p_g, p_x, p_w, p_dx, p_part,
    T, N, C, n_span, blocks_per_program,
    g_stride_b, g_stride_t, g_stride_n, x_stride_b, x_stride_t, x_stride_n,
    K: tl.constexpr, LEFT: tl.constexpr, RESIDUAL: tl.constexpr,
    NEED_DX: tl.constexpr, NEED_DW: tl.constexpr, ACC: tl.constexpr,
    BC: tl.constexpr, TILE: tl.constexpr, BT: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """One program: SPAN frames x blocks_per_program token blocks of dx, and its partial sums of db and dw."""
    BN: tl.constexpr = TILE // BC
    i = tl.program_id(0)
    n_c = tl.cdiv(C, BC)
    n_group = tl.cdiv(tl.cdiv(N, BN), blocks_per_program)
    i_part = i // n_c
    i_group = i_part // n_span % n_group
    i_b = (i_part // (n_span * n_group)).to(tl.int64)
    t_begin = i_part % n_span * SPAN
    chunks = tl.cdiv(tl.minimum(SPAN, T - t_begin), BT)
    o_c = (i % n_c) * BC + tl.arange(0, BC)
    m_c = (o_c < C)[None, :]
    taps = ()
    sums = (tl.zeros([BN, BC], ACC),)  # of the bias, then of each tap
    for j in tl.static_range(K):
        taps = taps + (tl.load(p_w + j * C + o_c, mask=o_c < C, other=0.0).to(ACC)[None, :],)
        sums = sums + (tl.zeros([BN, BC], ACC),)
    for i_block in range(i_group * blocks_per_program, (i_group + 1) * blocks_per_program):
        o_n = i_block * BN + tl.arange(0, BN)
        o_g = i_b * g_stride_b + o_n.to(tl.int64)[:, None] * g_stride_n + o_c[None, :]
        o_x = i_b * x_stride_b + o_n.to(tl.int64)[:, None] * x_stride_n + o_c[None, :]
        o_dx = i_b * T * N * C + o_n.to(tl.int64)[:, None] * C + o_c[None, :]
        for i_chunk in range(chunks):
            t0 = t_begin + i_chunk * BT
            window = ()
            for j in tl.static_range(K - 1):
                window = window + (load_frame(p_g, o_g, t0 + (j + LEFT - (K - 1)), T, N, g_stride_t, o_n, m_c),)
            for s in tl.static_range(BT):
                i_t = t0 + s
                window = window + (load_frame(p_g, o_g, i_t + LEFT, T, N, g_stride_t, o_n, m_c),)
                b_here = window[K - 1 - LEFT].to(ACC)
                b_dx = tl.zeros([BN, BC], ACC)
                if RESIDUAL:
                    b_dx += b_here
                if NEED_DW:
                    b_x = load_frame(p_x, o_x, i_t, T, N, x_stride_t, o_n, m_c).to(ACC)
                    grown = (sums[0] + b_here,)
                for j in tl.static_range(K):
                    # tap j carried frame i_t into the output of frame i_t + LEFT - j
                    b_g = window[K - 1 - j].to(ACC)
                    b_dx += b_g * taps[j]
                    if NEED_DW:
                        grown = grown + (sums[1 + j] + b_g * b_x,)
                if NEED_DW:
                    sums = grown
                if NEED_DX:
                    inside = tl.where(i_t < T, N, 0)
                    p_frame = p_dx + i_t.to(tl.int64) * N * C + o_dx
                    tl.store(p_frame, b_dx.to(p_dx.dtype.element_ty), mask=(o_n[:, None] < inside) & m_c)
                window = window[1:]
    if NEED_DW:
        p_row = p_part + i_part.to(tl.int64) * (K + 1) * C + o_c
        for j in tl.static_range(K + 1):
            tl.store(p_row + j * C, tl.sum(sums[j], 0), mask=o_c < C)


FORWARD = TunedKernel(
    temporal_conv_forward_kernel,
    [
        triton.Config({"TILE": 1024, "BT": 8}, num_warps=4),
        triton.Config({"TILE": 1024, "BT": 16}, num_warps=4),
        triton.Config({"TILE": 512, "BT": 8}, num_warps=2),
    ],
    key=("C", "K", "RESIDUAL"),
)
# SPAN: frames x token blocks that a program walks at most. Three taps fit in 128 registers,
# five where a thread holds four channels instead of eight.
BACKWARD = TunedKernel(
    temporal_conv_backward_kernel,
    [triton.Config({"TILE": 1024, "BT": 2, "SPAN": 128}, num_warps=4, maxnreg=128)],
)
BACKWARD_WIDE = TunedKernel(
    temporal_conv_backward_kernel, [triton.Config({"TILE": 1024, "BT": 1, "SPAN": 128}, num_warps=8)]
)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool) -> Tensor:
    """Launch the forward kernel; arguments as in `temporal_conv`."""
    batch, frames, tokens, channels = x.shape
    y = x.new_empty(x.shape)
    if y.numel() == 0:
        return y
    x = rows_of(x)
    taps = weight.shape[1]
    block = channel_block(channels)
    FORWARD.launch(
        lambda meta: (
            batch
            * triton.cdiv(channels, block)
            * triton.cdiv(frames, meta["BT"])
            * triton.cdiv(tokens, meta["TILE"] // block)
        ),
        x,
        p_x=x, p_w=weight.t().contiguous(), p_b=bias, p_y=y,
        T=frames, N=tokens, C=channels, stride_b=x.stride(0), stride_t=x.stride(1), stride_n=x.stride(2),
        K=taps, LEFT=taps // 2, BIAS=bias is not None, RESIDUAL=residual, ACC=wide(x), BC=block,
    )  # fmt: skip
    return y


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, residual: bool, need_dx: bool, need_dw: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; those not needed are empty tensors."""
    batch, frames, tokens, channels = x.shape
    taps = weight.shape[1]
    dx = x.new_empty(x.shape if need_dx else (0,))
    sums = x.new_zeros((taps + 1, channels), dtype=accumulator(x.dtype))  # of the bias, then of each tap
    if x.numel() == 0:
        return dx, *_parameter_gradients(sums, need_dw)
    grad, x = rows_of(grad), rows_of(x)
    block = channel_block(channels)
    kernel = BACKWARD if taps <= 3 else BACKWARD_WIDE
    meta = kernel.configs[0].kwargs
    spans = triton.cdiv(frames, meta["SPAN"])
    token_blocks = triton.cdiv(tokens, meta["TILE"] // block)
    pieces = batch * spans * token_blocks * triton.cdiv(channels, block)
    per_program = share(pieces, resident=4, most=min(token_blocks, max(1, meta["SPAN"] // frames)))
    parts = batch * spans * triton.cdiv(token_blocks, per_program)
    partial = sums.new_empty((parts, *sums.shape) if need_dw else (0,))
    kernel.launch(
        lambda meta: parts * triton.cdiv(channels, block),
        x,
        p_g=grad, p_x=x, p_w=weight.t().contiguous(), p_dx=dx, p_part=partial,
        T=frames, N=tokens, C=channels, n_span=spans, blocks_per_program=per_program,
        g_stride_b=grad.stride(0), g_stride_t=grad.stride(1), g_stride_n=grad.stride(2),
        x_stride_b=x.stride(0), x_stride_t=x.stride(1), x_stride_n=x.stride(2),
        K=taps, LEFT=taps // 2, RESIDUAL=residual,
        NEED_DX=need_dx, NEED_DW=need_dw, ACC=wide(x), BC=block,
    )  # fmt: skip
    return dx, *_parameter_gradients(partial.sum(0) if need_dw else sums, need_dw)


def _parameter_gradients(sums: Tensor, need_dw: bool) -> tuple[Tensor, Tensor]:
    """Sums `[1+k,C]` as gradients of the weight `[C,k]` and the bias `[C]`: new tensors, empty where not needed."""
    if not need_dw:
        return sums.new_empty((0, 0)), sums.new_empty((0,))
    return sums[1:].t().clone(memory_format=torch.contiguous_format), sums[0].clone()
