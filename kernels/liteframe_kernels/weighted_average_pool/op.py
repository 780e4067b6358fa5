"""Weighted average pooling: custom ops, their gradients, and the public function."""

import math
from typing import Any

import torch
from torch import Tensor

from liteframe_kernels.backend import check_floating, check_shape, use_triton, with_reference
from liteframe_kernels.precision import accumulator
from liteframe_kernels.weighted_average_pool.reference import frame_relative, weighted_average_pool_reference

SCOPES = ("block", "frame")


@torch.library.custom_op("liteframe_kernels::weighted_average_pool", mutates_args=())
def weighted_average_pool_op(
    patches: Tensor, query: Tensor | None, logits: Tensor | None, frame_mask: Tensor | None, kernel: list[int]
) -> tuple[Tensor, Tensor]:
    """Triton forward; see `weighted_average_pool`. The second output holds the weights, which carry no gradient."""
    from liteframe_kernels.weighted_average_pool import launcher

    return launcher.forward(patches, query, logits, frame_mask, kernel)


@torch.library.custom_op("liteframe_kernels::weighted_average_pool_backward", mutates_args=())
def weighted_average_pool_backward_op(
    grad: Tensor,
    patches: Tensor,
    query: Tensor | None,
    logits: Tensor | None,
    frame_mask: Tensor | None,
    weights: Tensor,
    kernel: list[int],
    need_patches: bool,
    need_query: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Triton backward: gradients of patches, query and logits, empty where not needed."""
    from liteframe_kernels.weighted_average_pool import launcher

    return launcher.backward(grad, patches, query, logits, frame_mask, weights, kernel, need_patches, need_query)


@weighted_average_pool_op.register_fake
def _fake(
    patches: Tensor, query: Tensor | None, logits: Tensor | None, frame_mask: Tensor | None, kernel: list[int]
) -> tuple[Tensor, Tensor]:
    sizes = [size // block for size, block in zip(patches.shape[1:4], kernel, strict=True)]
    pooled = patches.new_empty((patches.shape[0], *sizes, patches.shape[4]))
    return pooled, patches.new_empty(patches.shape[:4], dtype=accumulator(patches.dtype))


@weighted_average_pool_backward_op.register_fake
def _backward_fake(
    grad: Tensor,
    patches: Tensor,
    query: Tensor | None,
    logits: Tensor | None,
    frame_mask: Tensor | None,
    weights: Tensor,
    kernel: list[int],
    need_patches: bool,
    need_query: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    given = query is not None or logits is not None
    return (
        patches.new_empty(patches.shape if need_patches else (0,)),
        patches.new_empty((*patches.shape[:2], patches.shape[4]) if need_query else (0,)),
        weights.new_empty(weights.shape if given else (0,)),
    )


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    patches, query, logits, frame_mask, ctx.kernel = inputs
    ctx.save_for_backward(patches, query, logits, frame_mask, output[1])


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    patches, query, logits, frame_mask, weights = ctx.saved_tensors
    need_patches, need_query, need_logits = ctx.needs_input_grad[:3]
    dp, dq, dl = weighted_average_pool_backward_op(
        grad, patches, query, logits, frame_mask, weights, ctx.kernel, need_patches, need_query
    )
    return (
        dp if need_patches else None,
        dq.to(query.dtype) if need_query else None,
        dl.to(logits.dtype) if need_logits else None,
        None,
        None,
    )


weighted_average_pool_op.register_autograd(_gradients, setup_context=_save)


def _pool(
    patches: Tensor,
    query: Tensor | None,
    logits: Tensor | None,
    kernel: tuple[int, int, int],
    scope: str,
    frame_mask: Tensor | None,
) -> Tensor:
    """The Triton path. scope="frame" makes its logits in PyTorch, one more pass over the patches."""
    dtype = accumulator(patches.dtype)
    if scope == "frame" and query is not None:
        logits = torch.einsum("bthwc,btc->bthw", patches.to(dtype), query.to(dtype)) / math.sqrt(patches.shape[-1])
        query = None
    if scope == "frame" and logits is not None:
        logits = frame_relative(logits.to(dtype))
    return weighted_average_pool_op(patches, query, logits, frame_mask, list(kernel))[0]


@with_reference(weighted_average_pool_reference)
def weighted_average_pool(
    patches: Tensor,
    *,
    query: Tensor | None = None,
    logits: Tensor | None = None,
    kernel: tuple[int, int, int] = (4, 2, 2),
    scope: str = "block",
    frame_mask: Tensor | None = None,
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
        backend: None (Triton on CUDA, reference elsewhere), "triton" or "reference".

    Returns:
        `[B,T/t,h/h',w/w',C]` in the dtype of patches; sums are kept in float32 (float64 for float64 input).

    Raises:
        ValueError: query and logits both given, shapes that do not fit or do not divide, unsupported dtypes.
    """
    kernel = (int(kernel[0]), int(kernel[1]), int(kernel[2]))
    _check(patches, query, logits, kernel, scope, frame_mask)
    if use_triton("weighted_average_pool", patches, backend):
        return _pool(patches, query, logits, kernel, scope, frame_mask)
    return weighted_average_pool_reference(
        patches, query=query, logits=logits, kernel=kernel, scope=scope, frame_mask=frame_mask
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
