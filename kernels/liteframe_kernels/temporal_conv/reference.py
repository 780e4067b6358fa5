"""Depthwise temporal convolution in plain PyTorch: one shifted product a tap, added up.

y[b,t,n,c] = bias[c] + sum_j weight[c,j] * x[b,t+j-left,n,c],  left = k//2, zero outside the clip.
torch.compile makes one kernel of this form, together with the residual and the LayerNorm around it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from liteframe_kernels.precision import accumulator


def temporal_conv_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, residual: bool = False) -> Tensor:
    """Convolve `[B,T,N,C]` along T with `weight` `[C,k]`; same arguments and result as `temporal_conv`."""
    dtype = accumulator(x.dtype)
    frames, taps = x.shape[1], weight.shape[1]
    left = taps // 2
    wide, w = x.to(dtype), weight.to(dtype)
    padded = F.pad(wide, (0, 0, 0, 0, left, taps - 1 - left))
    out = wide if residual else torch.zeros((), dtype=dtype, device=x.device)
    if bias is not None:
        out = out + bias.to(dtype)
    for tap in range(taps):
        out = out + padded.narrow(1, tap, frames) * w[:, tap]  # [B,T,N,C]
    return out.to(x.dtype)
