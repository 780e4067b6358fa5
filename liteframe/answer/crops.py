"""Frames of high resolution in crops: AnyRes of LLaVA-OneVision (arXiv 2408.03326) over the slots of a video.

A frame is cut into a grid of crops of the size that the encoder was trained on; each place in the grid is encoded over
time like a video of its own. A slot then holds the tokens of the whole frame made small (the base view), and those of
all crops, put together as they lie in the frame, made fewer where they are more than a budget.

Shapes: T frames, S slots, V views, r x c crops a frame, h x w tokens a view, D channels of the language model.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution
from typing_extensions import override

from liteframe.answer.frame_encoder import ClipEncoder, EncoderOnTop, slot_tokens
from liteframe.models.vlm.processor import grid_slots
from liteframe.reduce.base import Tokens

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


def parse_crops(text: str) -> tuple[int, int]:
    """`16:9` -> at most 16 crops a frame, and tokens of at most 9 views a slot; `16` is `16:9`.

    Raises:
        ValueError: no such numbers.
    """
    parts = text.split(":")
    if not all(part.isdecimal() and int(part) > 0 for part in parts) or len(parts) > 2:
        raise ValueError(
            f"--crops {text!r}: write the most crops of a frame, and behind a colon of how many views a slot holds the "
            f"tokens, as 16:{VIEWS}"
        )
    return int(parts[0]), int(parts[1]) if len(parts) == 2 else VIEWS


class CropEncoder(EncoderOnTop):
    """The way of a Video LLM with a LiteFrame encoder, frame by frame in crops.

    Args:
        whole: the model's own way.
        most: crops that a frame is cut into at most; the frame's own size decides how many.
        views: see token_grids.
        mode: see token_grids.

    Raises:
        ValueError: the model numbers the places of tokens in a frame, which crops would need numbers for too, or sees
            frames in their own aspect ratio, or their center.
    """

    _whole: ClipEncoder

    def __init__(self, whole: ClipEncoder, most: int, views: int = VIEWS, mode: str = "code") -> None:
        if whole.mrope is not None:
            raise ValueError(
                f"crops are for models that count tokens like words; {type(whole.model).__name__} does not"
            )
        if whole.processor.resize != "squash":
            seen = {"crop": "the center of each", "aspect": "each in its own shape"}[whole.processor.resize]
            raise ValueError(f"crops are for models that see whole frames of one size; this one sees {seen}")
        super().__init__(whole)
        self.most, self.views, self.mode = most, views, mode
        self.size: Grid = whole.processor.frame_size
        self.clip_frames = whole.clip_frames
        self.most_frames = max(
            whole.clip_frames, whole.most_frames // (most + 1) // whole.clip_frames * whole.clip_frames
        )

    @override
    def resized(self, frames: np.ndarray | Tensor) -> Tensor:
        height, width = frames.shape[1:3]
        rows, columns = crop_grid(height, width, self.size, self.most)
        return self._whole.processor.resized(frames, (rows * self.size[0], columns * self.size[1]))

    @override
    def tokens(self, pixels: Tensor, first_frame: int) -> Tokens:
        crops = (pixels.shape[-2] // self.size[0], pixels.shape[-1] // self.size[1])
        if crops == (1, 1):
            return self._whole.tokens(pixels, first_frame)
        base = self._whole.processor.resized(pixels.permute(0, 2, 3, 1))  # [T,3,H,W]
        places = pixels.unflatten(3, (crops[1], -1)).unflatten(2, (crops[0], -1))  # [T,3,r,H,c,W]
        views = torch.cat([base[None], places.permute(2, 4, 0, 1, 3, 5).flatten(0, 1)])  # [V,T,3,H,W]
        encode = self._whole.model.model.get_video_features
        features = encode(views.flatten(0, 1), [len(pixels)] * len(views), final=False).pooler_output  # V x [S*h*w,D]
        view = self._whole.processor.grid(*self.size)
        grids = torch.stack(list(features)).unflatten(1, (-1, *view))  # [V,S,h,w,D]
        shown = torch.cat(_views(grids, crops, *token_grids(crops, view, self.views, self.mode)), dim=1)  # [S,N,D]
        slots = grid_slots(len(pixels), self._whole.processor.frames_per_slot, shown.shape[1])
        return slot_tokens(shown.flatten(0, 1), slots, first_frame, None)


def _views(grids: Tensor, crops: Grid, base: Grid, together: Grid) -> list[Tensor]:
    """[1+r*c,S,h,w,D] -> tokens of the base view [S,N,D] and of the crops put together [S,N',D]."""
    stitched = grids[1:].unflatten(0, crops)  # [r,c,S,h,w,D]
    if base != grids.shape[2:4]:  # each view by itself
        side = (together[0] // crops[0], together[1] // crops[1])
        stitched = _smaller(stitched.flatten(0, 2), side).unflatten(0, stitched.shape[:3])
    stitched = stitched.permute(2, 0, 3, 1, 4, 5).flatten(3, 4).flatten(1, 2)  # [S,r*h,c*w,D]
    return [_smaller(grids[0], base).flatten(1, 2), _smaller(stitched, together).flatten(1, 2)]


def _smaller(grid: Tensor, size: Grid) -> Tensor:
    """[M,h,w,D] -> [M,h',w',D], bilinear, as LLaVA reduces."""
    if grid.shape[1:3] == size:
        return grid
    wide = grid.permute(0, 3, 1, 2).to(torch.promote_types(grid.dtype, torch.float32))
    return F.interpolate(wide, size, mode="bilinear").permute(0, 2, 3, 1).to(grid.dtype)
