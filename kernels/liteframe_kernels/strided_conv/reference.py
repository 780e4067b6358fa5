"""Depthwise convolution with kernel = stride in plain PyTorch: windows as dimensions, one product a tap, added up.

y[b,t,h,w,c] = bias[c] + sum_ijl weight[c,i,j,l] * x[b,t*kt+i,h*kh+j,w*kw+l,c]
cls_y[b,t,c] = bias[c] + sum_i (sum_jl weight[c,i,j,l]) * cls[b,t*kt+i,c]: a cls token is constant over space.
"""

import torch
from torch import Tensor

from liteframe_kernels.precision import accumulator


def strided_conv_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, cls: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve `[B,T,H,W,C]` with `weight` `[C,kt,kh,kw]`; same arguments and result as `strided_conv`."""
    dtype = accumulator(x.dtype)
    kt, kh, kw = weight.shape[1:]
    w = weight.to(dtype).movedim(0, -1)
    # One step for product and sum where nothing is traced and no gradient is asked for, which moves fewer bytes.
    in_one = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    windows = (x if in_one else x.to(dtype)).unflatten(3, (-1, kw)).unflatten(2, (-1, kh)).unflatten(1, (-1, kt))
    y = torch.zeros((), dtype=dtype, device=x.device) if bias is None else bias.to(dtype)
    # A sum over three dimensions at once takes a CPU four times as long, forward and backward.
    for i, frame in enumerate(windows.unbind(2)):
        for j, row in enumerate(frame.unbind(3)):
            for k, tap in enumerate(row.unbind(4)):
                y = torch.addcmul(y, tap, w[i, j, k]) if in_one else y + tap * w[i, j, k]  # [B,T/kt,H/kh,W/kw,C]
    if cls is None:
        return y.to(x.dtype)
    cls_y = (cls.to(dtype).unflatten(1, (-1, kt)) * w.sum((1, 2))).sum(2)
    cls_y = cls_y if bias is None else cls_y + bias.to(dtype)
    return y.to(x.dtype), cls_y.to(cls.dtype)
