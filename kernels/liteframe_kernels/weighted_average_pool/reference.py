"""Weighted average pooling in plain PyTorch.

logits[b,t,h,w] = query[b,t] . patches[b,t,h,w] / sqrt(C), or given; weights = softmax over the members of a block;
out = sum over members of weights * patches. scope="frame" takes the softmax over the whole frame and renormalizes it
in the block, which is the block's softmax of the logits minus the frame's logsumexp: frames of a block no longer
compete by the level of their logits. Members of masked frames, and logits of -inf, weigh 0; a block that has no other
member is averaged uniformly.
"""

import math

import torch
from torch import Tensor

from liteframe_kernels.precision import accumulator


def weighted_average_pool_reference(
    patches: Tensor,
    *,
    query: Tensor | None = None,
    logits: Tensor | None = None,
    kernel: tuple[int, int, int] = (4, 2, 2),
    scope: str = "block",
    frame_mask: Tensor | None = None,
    precise: bool = False,
) -> Tensor:
    """Pool `[B,T,h,w,C]` in blocks of `kernel`; same arguments and result as `weighted_average_pool`."""
    dtype = accumulator(patches.dtype)
    wide = patches.to(dtype)
    if query is not None:
        logits = query_logits(wide, query)
    elif logits is None:
        logits = torch.zeros((), dtype=dtype, device=patches.device).expand(patches.shape[:-1])
    logits = logits.to(dtype)
    if scope == "frame":
        logits = frame_relative(logits)
    if frame_mask is not None:
        logits = logits.masked_fill(~frame_mask[:, :, None, None], -math.inf)
    weights = _block_softmax(_members(logits, kernel))
    pooled = (_members(wide, kernel) * weights[..., None]).sum((2, 4, 6))
    return pooled if precise else pooled.to(patches.dtype)


def query_logits(patches: Tensor, query: Tensor) -> Tensor:
    """Logits `[B,T,h,w]` of patches `[B,T,h,w,C]` under the query `[B,T,C]` of their frame, never in half precision."""
    dtype = accumulator(patches.dtype)
    with torch.autocast(patches.device.type, enabled=False):  # it would multiply in half precision
        products = torch.einsum("bthwc,btc->bthw", patches.to(dtype), query.to(dtype))
    return products / math.sqrt(patches.shape[-1])


def frame_relative(logits: Tensor) -> Tensor:
    """Logits `[B,T,h,w]` minus their logsumexp over the frame; a frame without a finite logit stays as it is."""
    total = torch.logsumexp(logits, dim=(2, 3), keepdim=True)
    return logits - total.masked_fill(total == -math.inf, 0)


def _members(x: Tensor, kernel: tuple[int, int, int]) -> Tensor:
    """`[B,T,h,w,...]` as `[B,T/kt,kt,h/kh,kh,w/kw,kw,...]`."""
    return x.unflatten(3, (-1, kernel[2])).unflatten(2, (-1, kernel[1])).unflatten(1, (-1, kernel[0]))


def _block_softmax(members: Tensor) -> Tensor:
    """Softmax over the member dimensions 2, 4, 6; uniform in a block that has no finite logit."""
    empty = (members == -math.inf).all(2, keepdim=True).all(4, keepdim=True).all(6, keepdim=True)
    members = members.masked_fill(empty, 0)
    weights = (members - members.amax((2, 4, 6), keepdim=True)).exp()
    return weights / weights.sum((2, 4, 6), keepdim=True)
