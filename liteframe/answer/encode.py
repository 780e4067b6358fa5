"""A video file through an encoder, clip by clip."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from liteframe.data.preprocess import FrameTransform
from liteframe.data.video.process import DecodeProcess
from liteframe.data.video.sampling import choose_frames
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.student.strides import is_still


@torch.no_grad()
def encode_video(
    encoder: LiteFrameEncoder,
    path: str | os.PathLike[str],
    *,
    frames: int | None = None,
    fps: float | None = None,
    size: int | tuple[int, int] | None = None,
    start: float | None = None,
    end: float | None = None,
    reader: str | None = None,
    deadline: float = 120.0,
    mode: str | None = None,
) -> Tensor:
    """Encode a video file; memory stays bounded by one clip of `encoder.config.clip_frames` frames.

    Args:
        encoder: a student; its device and dtype are used.
        path: a local video file.
        frames: at most so many, spread evenly over the span.
        fps: frames a second; with `frames` as well, as many of them as that budget allows. Neither: 1 frame a second,
            the lowest rate that encoders are trained at.
        size: pixels, one number or (height, width); None is the encoder's image_size. Where the encoder sees frames in
            their own aspect ratio, one number squared is the budget of pixels, and a pair is the size itself.
        start: start of the span in seconds of the file's time line, as a player counts them; None is the video's.
        end: its end in seconds; None is the video's.
        reader: the reader that `liteframe scan` recorded for this file; None is PyAV.
        deadline: seconds that decoding one clip may take.
        mode: compression of an elastic encoder; None is its own.

    Returns:
        [1,ceil(T/t),h,w,C] for T frames read and compression (t,..): raw teacher-space features. One frame alone is
        encoded as a still image.

    Raises:
        VideoError: the file or a frame of it cannot be decoded.
        ValueError: an argument is out of range, the size does not fit the encoder, or it has no such mode.
    """
    config = encoder.config if mode is None else encoder.config.of_mode(mode)
    resize = "squash" if isinstance(size, tuple) and config.resize == "aspect" else config.resize
    transform = FrameTransform(
        size or config.image_size, config.image_mean, config.image_std, resize, config.pixel_multiple
    )
    weight, form = next(encoder.parameters()), encoder.for_inference()
    features = []
    with DecodeProcess(deadline) as decoder:
        info = decoder.probe(path)
        # decord would choose among several tracks by rules of its own, and leave pixels as wide as they are stored.
        reader = reader if info.video_tracks == 1 and info.square_pixels else None
        indices = choose_frames(info.timeline, frames=frames, target_fps=fps, start=start, end=end)
        for first in range(0, len(indices), config.clip_frames):
            last = first + config.clip_frames
            pixels = decoder.read(path, indices[first:last], reader=reader, then=indices[last:])
            clip = transform.resized(pixels).to(weight.device).unsqueeze(0)
            features.append(form(clip, mode, is_still(len(indices), config.clip_frames)))
    return torch.cat(features, dim=1)
