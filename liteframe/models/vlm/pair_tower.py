"""transformers' own vision towers of the Qwen-VL kind: pairs of frames in, tokens in blocks out, and back to a grid.

These towers (Qwen2.5-VL, arXiv 2502.13923, and its successors) see two frames at a time and never more, take patches
flattened in blocks of those that are merged into one token of the language model, and Qwen2.5-VL's moves the blocks of
a window together. None has a cls token.
Shapes: B videos, T frames, t = ceil(T / 2) pairs of (h,w) patches, C channels, m patches of a block's side.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

PAIR = 2  # frames of one patch: the temporal patch


class Patches(NamedTuple):
    """What a tower takes: pixels of all patches [B*t*h*w, 3*2*p*p], and the grid (t,h,w) of each video, int64 [B,3]."""

    pixels: Tensor
    grid: Tensor


def patchified(video: Tensor, config: Any) -> Patches:
    """Frames [B,T,3,H,W] as a tower of this config takes them; of an odd number the last frame is repeated.

    transformers' own video processors repeat it, too.

    Raises:
        ValueError: the blocks of patches do not divide the frames.
    """
    p, m = config.patch_size, config.spatial_merge_size
    if config.temporal_patch_size != PAIR:
        raise ValueError(f"the tower has a temporal patch of {config.temporal_patch_size} frames; {PAIR} are supported")
    height, width = video.shape[-2:]
    if height % (p * m) or width % (p * m):
        raise ValueError(
            f"frames of {height}x{width} pixels do not fit a tower whose patches of {p} pixels are merged {m}x{m}: "
            f"height and width must be multiples of {p * m}"
        )
    if video.shape[1] % PAIR:
        video = torch.cat([video, video[:, -1:]], dim=1)
    blocks = video.unflatten(4, (-1, m, p)).unflatten(3, (-1, m, p)).unflatten(1, (-1, PAIR))
    # [B,t,2,3,h/m,m,p,w/m,m,p] -> [B,t,h/m,w/m,m,m,3,2,p,p]
    pixels = blocks.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9).reshape(-1, 3 * PAIR * p * p)
    size = [blocks.shape[1], height // p, width // p]
    return Patches(pixels, torch.tensor(size, device=video.device).repeat(len(video), 1))


def unpatchified(pixels: Tensor, grid: tuple[int, int, int], config: Any) -> Tensor:
    """The frames [2*t,3,H,W] of one video whose patches [t*h*w, 3*2*p*p] these are."""
    p, m, (t, h, w) = config.patch_size, config.merge_size, grid
    blocks = pixels.reshape(t, h // m, w // m, m, m, 3, PAIR, p, p)
    return blocks.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(t * PAIR, 3, h * p, w * p)


def raster(tokens: Tensor, grid: Tensor, config: Any) -> Tensor:
    """What a tower says of its patches in its own order [B*t*h*w,C], as a grid [B,t,h,w,C].

    Args:
        tokens: of videos that are all of one size.
        grid: int64 [B,3], as the tower got it.
        config: of the tower; with a `window_size`, the order is that of its windows.
    """
    m, (t, h, w) = config.spatial_merge_size, grid[0].tolist()
    blocks = tokens.unflatten(0, (-1, m * m))  # [B*t*h*w/m/m,m*m,C]
    if window := getattr(config, "window_size", None):
        order, _ = get_vision_window_index(grid, m, window, config.patch_size)
        blocks = blocks[order.argsort().to(blocks.device)]
    blocks = blocks.reshape(len(grid), t, h // m, w // m, m, m, tokens.shape[-1])
    return blocks.transpose(3, 4).reshape(len(grid), t, h, w, -1)


def whole_frame_block(config: Any) -> int:
    """Number of the last block whose attention sees whole frames.

    Raises:
        ValueError: there is none.
    """
    if not getattr(config, "window_size", None):
        return int(config.depth) - 1
    whole = [number for number in config.fullatt_block_indexes if number < config.depth]
    if not whole:
        raise ValueError(
            f"no block of the tower sees whole frames (fullatt_block_indexes {list(config.fullatt_block_indexes)} of "
            f"{config.depth} blocks), so it gives no saliency"
        )
    return max(whole)


def pair_frames(video_processor: Any, video: Tensor, **steps: bool) -> Tensor:
    """Frames [T,3,H,W] as a video processor of the Qwen-VL kind prepares them, [T,3,h,w].

    Two frames at a time, so that their size depends on that of the file alone, not on how many are looked at; where it
    can, it keeps to its most tokens a frame.

    Args:
        video_processor: gives flattened patches, which are put together again.
        video: uint8 [T,3,H,W].
        **steps: which steps are left out, such as `do_resize=False`.
    """
    capped = "cap_pixels_per_frame" in video_processor.valid_kwargs.__annotations__
    if capped:  # transformers' later versions do so by themselves
        steps = {**steps, "cap_pixels_per_frame": True}
    pairs = [pair if len(pair) == PAIR else pair.repeat(PAIR, 1, 1, 1) for pair in video.split(PAIR)]
    prepared = video_processor(videos=pairs, return_tensors="pt", do_sample_frames=False, **steps)
    _, h, w = prepared["video_grid_thw"][0].tolist()
    return unpatchified(prepared["pixel_values_videos"], (len(pairs), h, w), video_processor)[: len(video)]


def pair_features(model: Any, pixels: Tensor) -> Tensor:
    """What the language model of transformers' model reads of frames [T,3,H,W]: [t,h*w/m/m,D], a pair each.

    Where it reads features of n inner blocks of its tower, too (deepstack), they follow: [t,h*w/m/m,(1+n)*D].
    """
    patches = patchified(pixels[None], model.config.vision_config)
    output = model.model.get_video_features(patches.pixels, patches.grid)
    parts = [output.pooler_output, *getattr(output, "deepstack_features", ())]
    # Each is a tensor, or in a tuple with those of other videos.
    features = torch.cat([part if isinstance(part, Tensor) else part[0] for part in parts], -1)
    return features.unflatten(0, (int(patches.grid[0, 0]), -1))
