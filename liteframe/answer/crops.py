"""Frames of high resolution in crops: AnyRes of LLaVA-OneVision (arXiv 2408.03326) over the slots of a video.

A frame is cut into a grid of crops of the size that the encoder was trained on; each place in the grid is encoded over
time like a video of its own. A slot then holds the tokens of the whole frame made small (the base view), and those of
all crops, put together as they lie in the frame, made fewer where they are more than a budget.

Shapes: T frames, S slots, V views, r x c crops a frame, h x w tokens a view, D channels of the language model.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution
from typing_extensions import override

from liteframe.answer.frame_encoder import ClipEncoder, EncoderOnTop, slot_tokens
from liteframe.models.vlm.processor import grid_slots
from liteframe.reduce.base import Tokens, join_tokens

VIEWS = 9  # of whose tokens a slot has no more; LLaVA-OneVision's anyres_max_9
Grid = tuple[int, int]


def crop_grid(height: int, width: int, size: Grid, most: int) -> Grid:
    """Rows and columns of the crops of `size` that lose least of a frame height x width, `most` crops at most.

    transformers' rule for LLaVA: the grid in which the frame, its aspect ratio kept, has most pixels of its own, and
    among equals the one with fewest pixels.
    """
    grids = [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]
    best = select_best_resolution((height, width), [(rows * size[0], columns * size[1]) for rows, columns in grids])
    return best[0] // size[0], best[1] // size[1]


def token_grids(crops: Grid, view: Grid, views: int = VIEWS, mode: str = "code") -> tuple[Grid, Grid]:
    """Tokens of the base view and of all crops together, after reduction, each as (rows, columns).

    Args:
        crops: (r,c).
        view: (h,w), tokens of a view before reduction.
        views: the budget of a slot, in views.
        mode: "code", as LLaVA-NeXT's code has it: the crops together are made smaller when they hold more than the
            budget by a tenth a side, the base view does not count. "paper": each of the r*c + 1 views is made smaller
            when all of them are above the budget, to the largest grid of its shape below its share of it.

    Raises:
        ValueError: no such mode.
    """
    (rows, columns), (height, width) = crops, view
    if mode == "code":
        whole = (rows * height, columns * width)
        ratio = math.sqrt(whole[0] * whole[1] / (views * height * width))
        return view, (int(whole[0] // ratio), int(whole[1] // ratio)) if ratio > 1.1 else whole
    if mode == "paper":
        scale = math.sqrt(min(1, views / (rows * columns + 1)))
        height, width = (max(1, math.floor(side * scale)) for side in view)
        return (height, width), (rows * height, columns * width)
    raise ValueError(f"mode {mode!r}: choose code or paper")


def prompt_grids(
    clips: Sequence[tuple[Grid, int]], view: Grid, total: int, views: int = VIEWS, mode: str = "code"
) -> list[tuple[Grid, Grid]]:
    """Tokens of a slot of each clip, as of token_grids, where the slots of all clips of a prompt share a budget.

    A slot that is not cut has its base view alone, and (0,0) behind it. What token_grids leaves is scaled once more, by
    the share of `total` in all tokens ("paper", as Higher AnyRes scales the views of an image), or, where base views
    stay as they are ("code"), by the share of what these leave of `total` in all tokens of crops.

    Args:
        clips: crops (r,c) and number of slots of each.
        view: (h,w), tokens of a view before reduction.
        total: tokens that all slots hold together at most.
        views: see token_grids.
        mode: see token_grids.

    Raises:
        ValueError: no such mode, or a total of which nothing is left for a view.
    """
    slots = [count for _, count in clips]
    if mode == "paper":
        shown = [1 if crops == (1, 1) else math.prod(crops) + 1 for crops, _ in clips]
        shares = [min(1.0, views / each) for each in shown]
        lengths = [n * math.prod(view) * each * share for n, each, share in zip(slots, shown, shares, strict=True)]
        sides = [_scaled(view, share * scale_to(total, lengths)) for share in shares]
        grids = [
            (side, (0, 0) if crops == (1, 1) else (crops[0] * side[0], crops[1] * side[1]))
            for side, (crops, _) in zip(sides, clips, strict=True)
        ]
    else:
        rests = [(0, 0) if crops == (1, 1) else token_grids(crops, view, views, mode)[1] for crops, _ in clips]
        lengths = [n * math.prod(rest) for n, rest in zip(slots, rests, strict=True)]
        scale = scale_to(total - sum(slots) * math.prod(view), lengths)
        grids = [(view, _scaled(rest, scale)) for rest in rests]
    used = sum(n * (math.prod(base) + math.prod(rest)) for n, (base, rest) in zip(slots, grids, strict=True))
    empty = any(
        not math.prod(base) or (crops != (1, 1) and not math.prod(rest))
        for (crops, _), (base, rest) in zip(clips, grids, strict=True)
    )
    if empty or used > total:
        least = sum(slots) * math.prod(view) if mode == "code" else sum(slots)
        raise ValueError(
            f"{total} tokens are too few for {sum(slots)} slots, whose whole frames alone hold {least}: show fewer "
            "frames, or allow more tokens"
        )
    return grids


def scale_to(total: float, lengths: Sequence[float]) -> float:
    """The factor, 1 at most, by which lengths add up to no more than `total`."""
    return min(1.0, max(0.0, total) / sum(lengths)) if sum(lengths) else 1.0


def _scaled(grid: Grid, scale: float) -> Grid:
    """The largest grid of this shape whose area is no more than `scale` of it, rounded down a side."""
    return math.floor(grid[0] * math.sqrt(scale)), math.floor(grid[1] * math.sqrt(scale))


def parse_crops(text: str) -> tuple[int, int, int | None]:
    """`16:9:4096` -> at most 16 crops a frame, tokens of at most 9 views a slot, 4096 of a video; `16` is `16:9`.

    Raises:
        ValueError: no such numbers.
    """
    parts = text.split(":")
    if not all(part.isdecimal() and int(part) > 0 for part in parts) or len(parts) > 3:
        raise ValueError(
            f"--crops {text!r}: write the most crops of a frame, behind a colon of how many views a slot holds the "
            f"tokens, and behind another how many tokens a video holds, as 16, 16:{VIEWS} or 16:{VIEWS}:4096"
        )
    numbers = [int(part) for part in parts]
    return numbers[0], numbers[1] if len(numbers) > 1 else VIEWS, numbers[2] if len(numbers) > 2 else None


class CropEncoder(EncoderOnTop):
    """The way of a Video LLM with a LiteFrame encoder, frame by frame in crops.

    With a budget for the whole prompt, a video is one clip: how small its slots are depends on their number.

    Args:
        whole: the model's own way.
        most: crops that a frame is cut into at most; the frame's own size decides how many.
        views: see token_grids.
        mode: see token_grids.
        total: tokens that a whole video has in a prompt at most, with what ends it; None is any number.

    Raises:
        ValueError: the model numbers the places of tokens in a frame, which crops would need numbers for too, or sees
            frames in their own aspect ratio, or their center.
    """

    _whole: ClipEncoder

    def __init__(
        self, whole: ClipEncoder, most: int, views: int = VIEWS, mode: str = "code", total: int | None = None
    ) -> None:
        if whole.mrope is not None:
            raise ValueError(
                f"crops are for models that count tokens like words; {type(whole.model).__name__} does not"
            )
        if whole.processor.resize != "squash":
            seen = {"crop": "the center of each", "aspect": "each in its own shape"}[whole.processor.resize]
            raise ValueError(f"crops are for models that see whole frames of one size; this one sees {seen}")
        super().__init__(whole)
        self.most, self.views, self.mode, self.total = most, views, mode, total
        self.size: Grid = whole.processor.frame_size
        self._at_once = max(whole.clip_frames, whole.most_frames // (most + 1) // whole.clip_frames * whole.clip_frames)
        self.clip_frames = whole.clip_frames if total is None else sys.maxsize
        self.most_frames = self._at_once if total is None else sys.maxsize

    @override
    def resized(self, frames: np.ndarray | Tensor) -> Tensor:
        height, width = frames.shape[1:3]
        rows, columns = crop_grid(height, width, self.size, self.most)
        return self._whole.processor.resized(frames, (rows * self.size[0], columns * self.size[1]))

    @override
    def tokens(self, pixels: Tensor, first_frame: int) -> Tokens:
        if self.total is not None:
            if first_frame:
                raise ValueError(
                    f"{self.total} tokens are of a whole video, not of what comes after {first_frame} frames of it"
                )
            return self.prompt([pixels])[0]
        crops = self._crops(pixels)
        if crops == (1, 1):
            return self._whole.tokens(pixels, first_frame)
        view = self._whole.processor.grid(*self.size)
        return self._shown(pixels, first_frame, *token_grids(crops, view, self.views, self.mode))

    def prompt(self, clips: Sequence[Tensor]) -> list[Tokens]:
        """Whole videos and images of one prompt, pixels [T,3,H,W] of `pixels` each, -> tokens of each within `total`.

        Raises:
            ValueError: there is no total, or it is too small.
        """
        if self.total is None:
            raise ValueError("a prompt has no budget: give CropEncoder a total")
        ends = len(clips) * (self.end_embedding() is not None)
        per_slot = self._whole.processor.frames_per_slot
        slots = [(self._crops(pixels), -(-len(pixels) // per_slot)) for pixels in clips]
        view = self._whole.processor.grid(*self.size)
        grids = prompt_grids(slots, view, self.total - ends, self.views, self.mode)
        shown = []
        for pixels, (base, rest) in zip(clips, grids, strict=True):
            parts = [(start, pixels[start : start + self._at_once]) for start in range(0, len(pixels), self._at_once)]
            shown.append(join_tokens([self._shown(part, start, base, rest) for start, part in parts]))
        return shown

    def _crops(self, pixels: Tensor) -> Grid:
        return pixels.shape[-2] // self.size[0], pixels.shape[-1] // self.size[1]

    def _shown(self, pixels: Tensor, first_frame: int, base: Grid, together: Grid) -> Tokens:
        """Frames [T,3,H,W] of whole clips -> tokens of their slots, base view and crops in so many rows and columns."""
        crops = self._crops(pixels)
        views = self._whole.processor.resized(pixels.permute(0, 2, 3, 1))[None]  # [1,T,3,h,w]
        if crops != (1, 1):
            places = pixels.unflatten(3, (crops[1], -1)).unflatten(2, (crops[0], -1))  # [T,3,r,h,c,w]
            views = torch.cat([views, places.permute(2, 4, 0, 1, 3, 5).flatten(0, 1)])  # [V,T,3,h,w]
        encode = self._whole.model.model.get_video_features
        how = {"final": False, "first": first_frame == 0}
        features = encode(views.flatten(0, 1), [len(pixels)] * len(views), **how).pooler_output  # V x [S*h*w,D]
        view = self._whole.processor.grid(*self.size)
        grids = torch.stack(list(features)).unflatten(1, (-1, *view))  # [V,S,h,w,D]
        shown = torch.cat(_views(grids, crops, base, together), dim=1)  # [S,N,D]
        slots = grid_slots(len(pixels), self._whole.processor.frames_per_slot, shown.shape[1])
        return slot_tokens(shown.flatten(0, 1), slots, first_frame, None)


def _views(grids: Tensor, crops: Grid, base: Grid, together: Grid) -> list[Tensor]:
    """[1+r*c,S,h,w,D] -> tokens of the base view [S,N,D] and, if there are crops, of them put together [S,N',D]."""
    whole = _smaller(grids[0], base).flatten(1, 2)
    if len(grids) == 1:
        return [whole]
    stitched = grids[1:].unflatten(0, crops)  # [r,c,S,h,w,D]
    if base != grids.shape[2:4]:  # each view by itself
        side = (together[0] // crops[0], together[1] // crops[1])
        stitched = _smaller(stitched.flatten(0, 2), side).unflatten(0, stitched.shape[:3])
    stitched = stitched.permute(2, 0, 3, 1, 4, 5).flatten(3, 4).flatten(1, 2)  # [S,r*h,c*w,D]
    return [whole, _smaller(stitched, together).flatten(1, 2)]


def _smaller(grid: Tensor, size: Grid) -> Tensor:
    """[M,h,w,D] -> [M,h',w',D], bilinear, as LLaVA reduces."""
    if grid.shape[1:3] == size:
        return grid
    wide = grid.permute(0, 3, 1, 2).to(torch.promote_types(grid.dtype, torch.float32))
    return F.interpolate(wide, size, mode="bilinear").permute(0, 2, 3, 1).to(grid.dtype)
