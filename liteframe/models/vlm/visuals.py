"""Videos and images in whatever form transformers' own processors take them -> RGB frames.

This file travels inside exported models: it imports torch, transformers, numpy and Pillow, nothing else.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_utils import load_image
from transformers.utils import is_av_available, is_torchcodec_available
from transformers.video_utils import load_video

from liteframe.pictures import PictureError, read_picture, rgb


def listed_videos(value: Any, depth: int = 0) -> list[Any]:
    """Videos in order, each the name of a file, a list of frames (or of their names), or an array [T,...].

    Args:
        value: a video or any nesting of lists of them. As in transformers, frames in one list are one video; names
            are a video each, but where chat templates put those of frames, three lists deep.
        depth: of the lists around it.
    """
    if value is None:
        return []
    if isinstance(value, str | os.PathLike):
        return [os.fspath(value)]
    if _is_frame(value):
        return [[value]]
    if not isinstance(value, list | tuple):
        return [value] if getattr(value, "ndim", 4) == 4 else list(value)
    names = depth == 2 and all(isinstance(frame, str | os.PathLike) for frame in value)
    if value and (names or all(map(_is_frame, value))):
        return [list(value)]
    return [video for item in value for video in listed_videos(item, depth + 1)]


def listed_images(value: Any) -> list[Any]:
    """Images in order, each a name, of PIL, or an array [H,W] or [H,W,C] or [C,H,W]; from any nesting of lists."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [image for item in value for image in listed_images(item)]
    return list(value) if getattr(value, "ndim", 0) == 4 else [value]


def _is_frame(value: Any) -> bool:
    return isinstance(value, Image.Image) or getattr(value, "ndim", 0) in (2, 3)


def read_video(name: str, sample: Callable[..., Any] | None) -> tuple[Any, Any]:
    """Frames of a file or an address, an array, and transformers' metadata; by torchcodec, or PyAV where it is missing.

    Args:
        name: what transformers' own processors read.
        sample: from metadata to the indices of frames; None takes all.

    Raises:
        ImportError: there is no decoder.
        ValueError: there is no such file, or it does not say how many frames it has, or has fewer.
    """
    if "://" not in name and not os.path.isfile(name):
        raise ValueError(f"{name}: there is no such file")
    if not (is_torchcodec_available() or is_av_available()):
        raise ImportError(f"{name}: to read videos, pip install av (or torchcodec); or hand over decoded frames")

    def chosen(metadata: Any, **_: Any) -> list[int]:
        if not metadata.total_num_frames:
            raise ValueError(
                f"{name} does not say how many frames it has: pip install torchcodec, or hand over decoded frames"
            )
        indices = range(metadata.total_num_frames) if sample is None else sample(metadata=metadata)
        return [int(index) for index in indices]

    backend = "torchcodec" if is_torchcodec_available() else "pyav"
    frames, metadata = load_video(name, backend=backend, sample_indices_fn=chosen)
    if len(frames) != len(metadata.frames_indices):
        raise ValueError(f"{name} has fewer frames than it says: repair it, or hand over decoded frames")
    return frames, metadata


def rgb_video(frames: Any, layout: str | None = None, floating: bool = False) -> Tensor:
    """An array [T,...] or a list of frames -> [T,3,H,W]; see rgb_frames.

    Raises:
        ValueError: no frames, of several sizes, or not such pixels.
    """
    if isinstance(frames, list | tuple):
        pictures = [rgb_image(frame, layout, floating) for frame in frames]
        if sizes := sorted({tuple(picture.shape[1:]) for picture in pictures[1:]} - {tuple(pictures[0].shape[1:])}):
            raise ValueError(f"a video's frames are of one size, got {tuple(pictures[0].shape[1:])} and {sizes[0]}")
        return torch.stack(pictures)
    if getattr(frames, "ndim", 0) != 4 or not len(frames):
        shape = list(getattr(frames, "shape", []))
        raise ValueError(f"expected frames [T,H,W,3] uint8 with T >= 1, got {shape or type(frames).__name__}")
    return rgb_frames(frames, layout, floating)


def rgb_image(image: Any, layout: str | None = None, floating: bool = False) -> Tensor:
    """A name, an image of PIL, or an array [H,W], [H,W,C] or [C,H,W] -> [3,H,W]; see rgb_frames.

    Raises:
        ValueError: a file that is no picture or does not say which of its numbers is white, or not such pixels.
    """
    if isinstance(image, str | os.PathLike):
        name = os.fspath(image)
        try:
            image = read_picture(name) if os.path.isfile(name) else rgb(load_image(name))
        except PictureError as error:
            raise ValueError(f"{name} {error}") from error
    elif isinstance(image, Image.Image):
        image = rgb(image)
    if getattr(image, "ndim", 0) == 2:
        image = image[None]  # [1,H,W]
    return rgb_frames(image, layout, floating)


def rgb_frames(frames: Any, layout: str | None = None, floating: bool = False) -> Tensor:
    """Arrays [...,H,W,C] or [...,C,H,W] of 1 (grey), 3 or 4 (alpha) channels -> [...,3,H,W]; alpha is put on white.

    Args:
        frames: an array or a tensor; 16-bit pixels (uint16) are scaled, others are numbers from 0 to 255.
        layout: "channels_first" or "channels_last"; None finds out.
        floating: whether pixels may be floating, on the scale that normalization takes; else integers only.

    Raises:
        ValueError: other channels, or pixels that are no such numbers.
    """
    pixels = frames if isinstance(frames, Tensor) else torch.from_numpy(np.ascontiguousarray(frames))
    found = f"got {list(pixels.shape)} {pixels.dtype}"
    if pixels.ndim < 3:
        raise ValueError(f"expected pixels [H,W,3] uint8, {found}")
    sides = {name: pixels.shape[axis] in (1, 3, 4) for name, axis in (("channels_first", -3), ("channels_last", -1))}
    layouts = [name for name, fits in sides.items() if fits and layout in (None, name)]
    if len(layouts) != 1:
        raise ValueError(f"expected pixels [...,H,W,3] uint8 or [...,3,H,W], {found}; input_data_format says which")
    if layouts == ["channels_last"]:
        pixels = pixels.movedim(-1, -3)
    if pixels.dtype in (torch.bool, torch.uint16):
        wide = pixels.to(torch.int64)
        pixels = (wide * 255 if pixels.dtype == torch.bool else (wide + 128) // 257).to(torch.uint8)
    elif not pixels.is_floating_point() and pixels.dtype != torch.uint8:
        pixels = pixels.to(torch.int64)
        if pixels.numel() and (pixels.min() < 0 or pixels.max() > 255):
            raise ValueError(f"expected pixels from 0 to 255, uint8, {found} up to {int(pixels.max())}; scale them")
        pixels = pixels.to(torch.uint8)
    if pixels.dtype != torch.uint8 and not (floating and pixels.is_floating_point()):
        raise ValueError(f"expected pixels of uint8, {found}; those from 0 to 1 need do_rescale=False")
    if pixels.shape[-3] == 4:
        white = 1.0 if pixels.is_floating_point() else 255
        alpha = pixels[..., 3:, :, :] / white
        blended = pixels[..., :3, :, :] * alpha + white * (1 - alpha)
        pixels = blended if pixels.is_floating_point() else blended.round().to(torch.uint8)
    return pixels.expand(*pixels.shape[:-3], 3, *pixels.shape[-2:]).contiguous()  # [...,3,H,W]
