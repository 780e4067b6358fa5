"""Depthwise temporal convolution in plain PyTorch: one shifted product a tap, added up.

y[b,t,n,c] = bias[c] + sum_j weight[c,j] * x[b,t+j-left,n,c],  left = k//2 (causal: k-1), zero outside the clip.
torch.compile makes one kernel of this form, together with the residual and the LayerNorm around it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from liteframe_kernels.precision import accumulator


def temporal_conv_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: bool = False,
    causal: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Convolve `[B,T,N,C]` along T with `weight` `[C,k]`; same arguments and result as `temporal_conv`."""
    dtype = accumulator(x.dtype)
    frames, taps = x.shape[1], weight.shape[1]
    left = taps - 1 if causal else taps // 2
    wide, w = x.to(dtype), weight.to(dtype)
    padded = F.pad(wide, (0, 0, 0, 0, left, taps - 1 - left))
    clip = None if cu_seqlens is None else _clip_of_frame(cu_seqlens, frames)
    out = wide if residual else torch.zeros((), dtype=dtype, device=x.device)
    if bias is not None:
        out = out + bias.to(dtype)
    for tap in range(taps):
        shifted = padded.narrow(1, tap, frames)
        if clip is not None:
            inside = F.pad(clip, (left, taps - 1 - left), value=-1).narrow(0, tap, frames) == clip
            shifted = shifted * inside[:, None, None]
        out = out + shifted * w[:, tap]
    return out.to(x.dtype)


def _clip_of_frame(cu_seqlens: Tensor, frames: int) -> Tensor:
    """Number of the clip each frame belongs to, `[T]`."""
    return torch.searchsorted(
        cu_seqlens, torch.arange(frames, device=cu_seqlens.device, dtype=cu_seqlens.dtype), right=True
    )
