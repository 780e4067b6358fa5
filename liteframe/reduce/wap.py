"""Weighted average pooling (WAP): the target that a LiteFrame student learns (arXiv 2605.17260; design, section 5).

Shapes: B videos, T frames, (h,w) patch grid, C channels.
"""

from typing import Literal

import torch
from liteframe_kernels import weighted_average_pool as pool_whole_blocks
from torch import Tensor


def weighted_average_pool(
    patches: Tensor,
    *,
    query: Tensor | None = None,
    logits: Tensor | None = None,
    kernel: tuple[int, int, int] = (4, 2, 2),
    scope: Literal["block", "frame"] = "block",
) -> Tensor:
    """Pool each block of (t,h,w) patches into one, weighted by saliency.

    A member's logit is `query of its own frame . member / sqrt(C)`, or the `logits` given; the weights are their
    softmax over the block, or over the frame and renormalized in the block. With neither, the plain mean.
    T need not be a multiple of t: the last block is filled with copies of the last frame that weigh nothing.

    Args:
        patches: [B,T,h,w,C].
        query: [B,T,C], usually the cls token; excludes `logits`.
        logits: [B,T,h,w], larger means more salient; excludes `query`.
        kernel: (t,h,w) of a block.
        scope: "block" lets the frames of a block compete, "frame" gives each the weight its own softmax left it.

    Returns:
        [B,ceil(T/t),h/kh,w/kw,C], dtype of `patches`.

    Raises:
        ValueError: both query and logits, no frame, or a grid that the block does not divide.
    """
    if patches.ndim != 5 or patches.shape[1] == 0:
        raise ValueError(f"expected patches [B,T,h,w,C] with T >= 1, got {list(patches.shape)}")
    missing = -patches.shape[1] % kernel[0]
    mask = None
    if missing:
        real = patches.shape[1]
        patches = _repeat_last(patches, missing)
        query = None if query is None else _repeat_last(query, missing)
        logits = None if logits is None else _repeat_last(logits, missing)
        mask = torch.arange(patches.shape[1], device=patches.device) < real
        mask = mask.expand(patches.shape[0], -1)
    with torch.autocast(patches.device.type, enabled=False):  # it would round the weights to half precision
        return pool_whole_blocks(patches, query=query, logits=logits, kernel=kernel, scope=scope, frame_mask=mask)


def _repeat_last(x: Tensor, count: int) -> Tensor:
    return torch.cat([x, x[:, -1:].expand(-1, count, *x.shape[2:])], dim=1)
