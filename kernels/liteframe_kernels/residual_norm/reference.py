"""Residual sum, temporal convolution and LayerNorm in plain PyTorch.

z = x + scale * branch,  stream = z + conv(z) (or z),  normalized = LayerNorm(stream)
"""

import torch.nn.functional as F
from torch import Tensor

from liteframe_kernels.temporal_conv.reference import temporal_conv_reference


def residual_norm_reference(
    x: Tensor,
    branch: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    eps: float,
    scale: Tensor | None = None,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Add, convolve, normalize `[B,T,N,C]`; same arguments and results as `residual_norm`."""
    stream = x + (branch if scale is None else scale * branch)
    if conv_weight is not None:
        stream = temporal_conv_reference(stream, conv_weight, conv_bias, residual=True)
    return stream, F.layer_norm(stream, stream.shape[-1:], norm_weight, norm_bias, eps).to(branch.dtype)
