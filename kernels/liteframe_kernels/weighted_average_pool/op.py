"""Weighted average pooling: the custom op and the public function."""

import torch
from torch import Tensor

from liteframe_kernels.backend import check_floating, check_shape, use_triton, with_reference
from liteframe_kernels.precision import accumulator
from liteframe_kernels.weighted_average_pool.reference import (
    frame_relative,
    query_logits,
    weighted_average_pool_reference,
)

SCOPES = ("block", "frame")


@torch.library.custom_op("liteframe_kernels::weighted_average_pool", mutates_args=())
def weighted_average_pool_op(
    patches: Tensor,
    query: Tensor | None,
    logits: Tensor | None,
    frame_mask: Tensor | None,
    kernel: list[int],
    precise: bool = False,
) -> Tensor:
    """Triton forward; see `weighted_average_pool`."""
    from liteframe_kernels.weighted_average_pool import triton

    return triton.forward(patches, query, logits, frame_mask, kernel, precise)


@weighted_average_pool_op.register_fake
def _fake(
    patches: Tensor,
    query: Tensor | None,
    logits: Tensor | None,
    frame_mask: Tensor | None,
    kernel: list[int],
    precise: bool = False,
) -> Tensor:
    sizes = [size // block for size, block in zip(patches.shape[1:4], kernel, strict=True)]
    dtype = accumulator(patches.dtype) if precise else patches.dtype
    return patches.new_empty((patches.shape[0], *sizes, patches.shape[4]), dtype=dtype)


def _pool(
    patches: Tensor,
    query: Tensor | None,
    logits: Tensor | None,
    kernel: tuple[int, int, int],
    scope: str,
    frame_mask: Tensor | None,
    precise: bool,
) -> Tensor:
    """The Triton path. scope="frame" makes its logits in PyTorch, one more pass over the patches."""
    if scope == "frame" and query is not None:
        logits, query = query_logits(patches, query), None
    if scope == "frame" and logits is not None:
        logits = frame_relative(logits.to(accumulator(patches.dtype)))
    return weighted_average_pool_op(patches, query, logits, frame_mask, list(kernel), precise)


@with_reference(weighted_average_pool_reference)
def weighted_average_pool(
    patches: Tensor,
    *,
    query: Tensor | None = None,
    logits: Tensor | None = None,
    kernel: tuple[int, int, int] = (4, 2, 2),
    scope: str = "block",
    frame_mask: Tensor | None = None,
    precise: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Average blocks of patch features, weighted by the attention of the frame's query (WAP of arXiv 2605.17260).

    Args:
        patches: `[B,T,h,w,C]`, contiguous or a view such as `tokens[:, :, 1:].unflatten(2, (h, w))`.
        query: cls token of each frame, `[B,T,C]`; logits are query . patch / sqrt(C).
        logits: given logits `[B,T,h,w]` for teachers without a cls token. Neither of both: the plain mean.
        kernel: block size (t, h, w); each divides its axis.
        scope: "block" takes the softmax over the members of a block, "frame" over the frame, renormalized in the block.
        frame_mask: `[B,T]` bool, False for padded frames, which weigh 0. A block without a frame is averaged uniformly.
        precise: give the sums as they are instead of rounding them to the dtype of patches.
        backend: None (Triton on CUDA, reference elsewhere), "triton" or "reference".

    Returns:
        `[B,T/t,h/h',w/w',C]` in the dtype of patches, or in that of the sums where `precise`. Logits and sums are
        float32 (float64 for float64 input), also inside autocast.

    Raises:
        ValueError: query and logits both given, shapes that do not fit or do not divide, unsupported dtypes, or
            gradients wanted of the Triton kernel, which has none.
    """
    kernel = (int(kernel[0]), int(kernel[1]), int(kernel[2]))
    _check(patches, query, logits, kernel, scope, frame_mask)
    if use_triton("weighted_average_pool", patches, backend):
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (patches, query, logits)):
            raise ValueError(
                "weighted_average_pool: the Triton kernel has no backward pass; call it under torch.no_grad(), "
                "or with backend='reference', which autograd differentiates"
            )
        return _pool(patches, query, logits, kernel, scope, frame_mask, precise)
    return weighted_average_pool_reference(
        patches, query=query, logits=logits, kernel=kernel, scope=scope, frame_mask=frame_mask, precise=precise
    )


def _check(
    patches: Tensor,
    query: Tensor | None,
    logits: Tensor | None,
    kernel: tuple[int, int, int],
    scope: str,
    frame_mask: Tensor | None,
) -> None:
    name = "weighted_average_pool"
    if patches.ndim != 5:
        raise ValueError(f"{name}: patches has shape {tuple(patches.shape)}, expected [B,T,h,w,C]")
    if query is not None and logits is not None:
        raise ValueError(f"{name}: query and logits are both given; pass the one that the weights come from")
    if scope not in SCOPES:
        raise ValueError(f"{name}: scope is {scope!r}; use 'block' or 'frame'")
    for axis, size, block in zip("Thw", patches.shape[1:4], kernel, strict=True):
        if block < 1 or size % block:
            raise ValueError(f"{name}: {axis}={size} is not a multiple of its block size {block}; pad the input first")
    check_shape(name, "query", query, (*patches.shape[:2], patches.shape[4]))
    check_shape(name, "logits", logits, tuple(patches.shape[:4]))
    check_shape(name, "frame_mask", frame_mask, tuple(patches.shape[:2]))
    check_floating(name, patches=patches, query=query, logits=logits)
    if frame_mask is not None and frame_mask.dtype != torch.bool:
        raise ValueError(f"{name}: frame_mask is {frame_mask.dtype}, expected torch.bool")
