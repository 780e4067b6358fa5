# ruff: noqa: RUF005 - the Triton compiler knows concatenation of tuples, not unpacking
# mypy: disable-error-code="assignment, var-annotated"
"""Depthwise convolution with kernel = stride in Triton; the cls token rides in the same launch.

    y[b,t,h,w,c]       = bias[c] + sum_ijl weight[c,i,j,l] * x[b,t*KT+i,h*KH+j,w*KW+l,c]
    dx[b,t*KT+i,...,c] = weight[c,i,j,l] * g[b,t,h,w,c]
    dw[c,i,j,l]        = sum_bthw g * x[..i,j,l..] + sum_bt g_cls * cls[b,t*KT+i,c],   db[c] = sum g + sum g_cls

The windows do not overlap, so each token is read once: forward reads x and writes 1/(KT KH KW) of it, backward reads x
and g and writes dx. A program owns BR output tokens x BC channels; the last programs of the launch own cls tokens.
Backward programs take one temporal tap each, which bounds the sums held in registers, and walk over several blocks of
tokens; their partial sums are added by a second kernel in fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from liteframe_kernels.launch import COUNTS, TunedKernel, channel_block, rows_of, share, wide
from liteframe_kernels.precision import accumulator


@triton.jit
def window_rows(o_r, TO, HO, WO, KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr):
    """Batch, first frame, first row and first column of the window of each output token."""
    i_w = o_r % WO * KW
    i_h = o_r // WO % HO * KH
    i_t = o_r // (WO * HO) % TO * KT
    i_b = o_r // (WO * HO * TO)
    return i_b.to(tl.int64), i_t.to(tl.int64), i_h.to(tl.int64), i_w.to(tl.int64)


@triton.jit
def load_taps(p_w, i, o_c, C, ACC: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr):
    """Spatial taps `[1,BC]` of temporal tap i, and their sum."""
    taps = ()
    total = tl.zeros([1, o_c.shape[0]], ACC)
    for j in tl.static_range(KH * KW):
        b_w = tl.load(p_w + (i * KH * KW + j) * C + o_c, mask=o_c < C, other=0.0).to(ACC)[None, :]
        taps = taps + (b_w,)
        total += b_w
    return taps, total


@triton.jit(do_not_specialize=COUNTS)
def strided_conv_forward_kernel(
    p_x, p_cls, p_w, p_b, p_y, p_cls_y,
    rows, cls_rows, TO, HO, WO, C, stride_b, stride_t, stride_h, stride_w, cls_stride_b, cls_stride_t,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BIAS: tl.constexpr, CLS: tl.constexpr,
    ACC: tl.constexpr, BC: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One program: BR output tokens x BC channels, of patches or of cls."""
    BR: tl.constexpr = TILE // BC
    n_c = tl.cdiv(C, BC)
    i_block = tl.program_id(0) // n_c
    o_c = tl.program_id(0) % n_c * BC + tl.arange(0, BC)
    m_c = (o_c < C)[None, :]
    b_y = tl.zeros([BR, BC], ACC)
    if BIAS:
        b_y += tl.load(p_b + o_c, mask=o_c < C, other=0.0).to(ACC)[None, :]
    n_blocks = tl.cdiv(rows, BR)
    if i_block < n_blocks:
        o_r = i_block * BR + tl.arange(0, BR)
        m = (o_r < rows)[:, None] & m_c
        i_b, i_t, i_h, i_w = window_rows(o_r, TO, HO, WO, KT, KH, KW)
        o_x = (i_b * stride_b + i_t * stride_t + i_h * stride_h + i_w * stride_w)[:, None] + o_c[None, :]
        for i in tl.static_range(KT):
            taps, total = load_taps(p_w, i, o_c, C, ACC, KH, KW)
            for j in tl.static_range(KH):
                for k in tl.static_range(KW):
                    p_tap = p_x + o_x + (tl.cast(stride_t, tl.int64) * i + stride_h * j + stride_w * k)
                    b_y += tl.load(p_tap, mask=m, other=0.0).to(ACC) * taps[j * KW + k]
        o_y = o_r.to(tl.int64)[:, None] * C + o_c[None, :]
        tl.store(p_y + o_y, b_y.to(p_y.dtype.element_ty), mask=m)
    elif CLS:
        o_r = (i_block - n_blocks) * BR + tl.arange(0, BR)
        m = (o_r < cls_rows)[:, None] & m_c
        i_b, i_t, i_h, i_w = window_rows(o_r, TO, 1, 1, KT, 1, 1)
        o_x = (i_b * cls_stride_b + i_t * cls_stride_t)[:, None] + o_c[None, :]
        for i in tl.static_range(KT):
            taps, total = load_taps(p_w, i, o_c, C, ACC, KH, KW)
            p_tap = p_cls + o_x + tl.cast(cls_stride_t, tl.int64) * i
            b_y += tl.load(p_tap, mask=m, other=0.0).to(ACC) * total
        o_y = o_r.to(tl.int64)[:, None] * C + o_c[None, :]
        tl.store(p_cls_y + o_y, b_y.to(p_cls_y.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=COUNTS)
def strided_conv_backward_kernel(
    p_g, p_g_cls, p_x, p_cls, p_w, p_dx, p_dcls, p_part,
    rows, cls_rows, TO, HO, WO, C, parts, blocks_per_program,
    stride_b, stride_t, stride_h, stride_w, cls_stride_b, cls_stride_t,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, CLS: tl.constexpr,
    NEED_DX: tl.constexpr, NEED_DW: tl.constexpr,
    ACC: tl.constexpr, BC: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One program: temporal tap i of blocks_per_program x BR windows, of patches or of cls, and its partial sums."""
    BR: tl.constexpr = TILE // BC
    n_c = tl.cdiv(C, BC)
    o_c = tl.program_id(0) % n_c * BC + tl.arange(0, BC)
    m_c = (o_c < C)[None, :]
    i = tl.program_id(0) // n_c % KT
    i_part = tl.program_id(0) // (n_c * KT)
    p_row = p_part + (i_part.to(tl.int64) * KT + i) * (KH * KW + 1) * C + o_c
    taps, total = load_taps(p_w, i, o_c, C, ACC, KH, KW)
    bias_sum = tl.zeros([BR, BC], ACC)
    if i_part < parts:
        sums = ()
        for _ in tl.static_range(KH * KW):
            sums = sums + (tl.zeros([BR, BC], ACC),)
        first = i_part * blocks_per_program
        for i_block in range(first, tl.minimum(first + blocks_per_program, tl.cdiv(rows, BR))):
            o_r = i_block * BR + tl.arange(0, BR)
            m = (o_r < rows)[:, None] & m_c
            i_b, i_t, i_h, i_w = window_rows(o_r, TO, HO, WO, KT, KH, KW)
            b_g = tl.load(p_g + o_r.to(tl.int64)[:, None] * C + o_c[None, :], mask=m, other=0.0).to(ACC)
            bias_sum += b_g
            o_x = (i_b * stride_b + (i_t + i) * stride_t + i_h * stride_h + i_w * stride_w)[:, None] + o_c[None, :]
            o_dx = (((i_b * TO * KT + i_t + i) * HO * KH + i_h) * WO * KW + i_w)[:, None] * C + o_c[None, :]
            grown = ()
            for j in tl.static_range(KH):
                for k in tl.static_range(KW):
                    if NEED_DX:
                        b_dx = (b_g * taps[j * KW + k]).to(p_dx.dtype.element_ty)
                        tl.store(p_dx + o_dx + (tl.cast(WO, tl.int64) * KW * j + k) * C, b_dx, mask=m)
                    if NEED_DW:
                        p_tap = p_x + o_x + (tl.cast(stride_h, tl.int64) * j + stride_w * k)
                        b_x = tl.load(p_tap, mask=m, other=0.0).to(ACC)
                        grown = grown + (sums[j * KW + k] + b_g * b_x,)
            if NEED_DW:
                sums = grown
        if NEED_DW:
            for j in tl.static_range(KH * KW):
                tl.store(p_row + (j + 1) * C, tl.sum(sums[j], 0), mask=o_c < C)
    elif CLS:
        cls_sum = tl.zeros([BR, BC], ACC)
        first = (i_part - parts) * blocks_per_program
        for i_block in range(first, tl.minimum(first + blocks_per_program, tl.cdiv(cls_rows, BR))):
            o_r = i_block * BR + tl.arange(0, BR)
            m = (o_r < cls_rows)[:, None] & m_c
            i_b, i_t, i_h, i_w = window_rows(o_r, TO, 1, 1, KT, 1, 1)
            b_g = tl.load(p_g_cls + o_r.to(tl.int64)[:, None] * C + o_c[None, :], mask=m, other=0.0).to(ACC)
            bias_sum += b_g
            if NEED_DX:
                o_dx = (i_b * TO * KT + i_t + i)[:, None] * C + o_c[None, :]
                tl.store(p_dcls + o_dx, (b_g * total).to(p_dcls.dtype.element_ty), mask=m)
            if NEED_DW:
                o_x = (i_b * cls_stride_b + (i_t + i) * cls_stride_t)[:, None] + o_c[None, :]
                cls_sum += b_g * tl.load(p_cls + o_x, mask=m, other=0.0).to(ACC)
        if NEED_DW:
            for j in tl.static_range(KH * KW):
                tl.store(p_row + (j + 1) * C, tl.sum(cls_sum, 0), mask=o_c < C)
    if NEED_DW:
        tl.store(p_row, tl.sum(bias_sum, 0), mask=o_c < C)


FORWARD = TunedKernel(
    strided_conv_forward_kernel,
    [
        triton.Config({"TILE": 1024}, num_warps=4),
        triton.Config({"TILE": 512}, num_warps=2),
    ],
    key=("C", "KT", "KH", "KW"),
)
MOST_BLOCKS = 32  # of tokens that a program walks
# The sums of up to four spatial taps fit in 128 registers.
BACKWARD = TunedKernel(strided_conv_backward_kernel, [triton.Config({"TILE": 1024}, num_warps=4, maxnreg=128)])
# Up to nine of them, where a thread holds two channels instead of eight.
BACKWARD_WIDE = TunedKernel(strided_conv_backward_kernel, [triton.Config({"TILE": 512}, num_warps=8)])


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
        x,
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
        rows, cls_rows = grad.numel() // channels, batch * out[0] if with_cls else 0
        rows_of_block = kernel_function.configs[0].kwargs["TILE"] // block
        pieces = triton.cdiv(rows, rows_of_block) * kernel[0] * triton.cdiv(channels, block)
        each = share(pieces, resident=4, most=MOST_BLOCKS)
        rows_per_part = rows_of_block * each
        parts, cls_parts = triton.cdiv(rows, rows_per_part), triton.cdiv(cls_rows, rows_per_part)
        partial = sums.new_empty((parts + cls_parts, *sums.shape))
        kernel_function.launch(
            lambda meta: (parts + cls_parts) * kernel[0] * triton.cdiv(channels, block),
            x,
            p_g=grad, p_g_cls=grad_cls, p_x=x, p_cls=cls, p_w=weight.flatten(1).t().contiguous(),
            p_dx=dx, p_dcls=dcls, p_part=partial,
            rows=rows, cls_rows=cls_rows, TO=out[0], HO=out[1], WO=out[2], C=channels, parts=parts,
            blocks_per_program=each, **strides(x, cls),
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
