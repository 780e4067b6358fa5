"""Weighted average pooling (WAP): the target that a LiteFrame student learns (arXiv 2605.17260; design, section 5).

Shapes: B videos, T frames, (h,w) patch grid, C channels.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
from liteframe_kernels import weighted_average_pool as pool_whole_windows
from torch import Tensor
from typing_extensions import override

from liteframe.reduce.base import Signals, Tokens, Window
from liteframe.reduce.reducer import Reducer, check_window

# What competes for a window's weight: its members, or all patches of their own frame.
SoftmaxOver: TypeAlias = Literal["block", "frame"]


def weighted_average_pool(
    patches: Tensor,
    *,
    query: Tensor | None = None,
    logits: Tensor | None = None,
    kernel: Window = (4, 2, 2),
    scope: SoftmaxOver = "block",
    frame_mask: Tensor | None = None,
    precise: bool = False,
) -> Tensor:
    """Pool each window of (t,h,w) patches into one token, weighted by saliency.

    A member's logit is `query of its own frame . member / sqrt(C)`, or the `logits` given; the weights are their
    softmax over the window, or over the frame and renormalized in the window. With neither, the plain mean.
    T need not be a multiple of t: the last window is filled with copies of the last frame that weigh nothing.

    Args:
        patches: [B,T,h,w,C].
        query: [B,T,C], usually the cls token; excludes `logits`.
        logits: [B,T,h,w], larger means more salient; excludes `query`.
        kernel: (t,h,w) of a window.
        scope: "block" lets the frames of a window compete, "frame" gives each the weight its own softmax left it.
        frame_mask: bool [B,T], False for frames that weigh nothing; a window of such frames alone is their plain mean.
        precise: give the sums as they are instead of rounding them to the dtype of `patches`.

    Returns:
        [B,ceil(T/t),h/kh,w/kw,C], dtype of `patches`, or of the sums where `precise`: float32 (float64 for float64).

    Raises:
        ValueError: both query and logits, no frame, or a grid that the window does not divide.
    """
    if patches.ndim != 5 or patches.shape[1] == 0:
        raise ValueError(f"expected patches [B,T,h,w,C] with T >= 1, got {list(patches.shape)}")
    missing = -patches.shape[1] % kernel[0]
    if missing:
        if frame_mask is None:
            frame_mask = patches.new_ones(patches.shape[:2], dtype=torch.bool)
        frame_mask = whole_windows(frame_mask, kernel[0])
        patches = _repeat_last(patches, missing)
        query = None if query is None else _repeat_last(query, missing)
        logits = None if logits is None else _repeat_last(logits, missing)
    return pool_whole_windows(
        patches, query=query, logits=logits, kernel=kernel, scope=scope, frame_mask=frame_mask, precise=precise
    )


def real_slots(frame_mask: Tensor, frames: int) -> Tensor:
    """Bool [B,T] of frames -> bool [B,ceil(T/frames)], False for slots without any real frame."""
    return whole_windows(frame_mask, frames).unflatten(1, (-1, frames)).any(2)


def whole_windows(frame_mask: Tensor, frames: int) -> Tensor:
    """Bool [B,T], filled with False to a multiple of `frames`."""
    missing = -frame_mask.shape[1] % frames
    return torch.cat([frame_mask, frame_mask.new_zeros(len(frame_mask), missing)], dim=1) if missing else frame_mask


def _repeat_last(x: Tensor, count: int) -> Tensor:
    return torch.cat([x, x[:, -1:].expand(-1, count, *x.shape[2:])], dim=1)  # [B,T+count,...]


@dataclass(frozen=True)
class WeightedAverage(Reducer):
    """WAP as a reducer: the query of a frame is its global vector, the cls token of InternVL."""

    needs: ClassVar[frozenset[str]] = frozenset({"glob"})
    space: ClassVar[str] = "patch"
    window: Window = (4, 2, 2)
    softmax_over: SoftmaxOver = "block"

    @override
    def reduce(self, signals: Signals, budget: int) -> Tokens:
        """ceil(F/t) * h/kh * w/kw tokens."""
        check_window(signals, self.window, budget)
        query = None if signals.glob is None else signals.glob[None]  # [1,F,C]
        pooled = weighted_average_pool(
            signals.features[None], query=query, kernel=self.window, scope=self.softmax_over
        )[0]  # [ceil(F/t),h/kh,w/kw,C]
        return Tokens.grid(pooled, len(signals.tokens), self.window)
