"""An elastic student: several compressions in one set of weights, the mode chosen when it encodes.

Not the paper's, ours. A strided conv holds the kernel of the largest stride of all modes after its block; a mode with a
smaller stride has that kernel's block sums, which is FlexiViT's rule (arXiv 2212.08013) for an input that repeats.
Everything else is shared.

Shapes: B videos, T frames, H x W pixels, h x w patch grid, N = 1 + h*w tokens a frame (cls first), C channels.
This file travels inside exported models.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.encoder import LiteFrameEncoder, Pending, summed
from liteframe.models.student.mixers import block_sums
from liteframe.models.student.strides import Stride


def all_modes(encoder: LiteFrameEncoder, video: Tensor) -> dict[str, Tensor]:
    """A video in each mode of an elastic encoder, with gradients: `encoder(video, mode)` by mode, the finest first.

    Modes part where their strides differ, and what is before that is computed once.

    Args:
        encoder: an elastic one.
        video: [B,T,3,H,W], normalized; each mode's t divides T.

    Raises:
        ValueError: T is something else, the sizes do not fit, or the encoder has no modes.
    """
    t = encoder.config.multiple[0]
    encoder.config.default_mode  # noqa: B018 - raises where there are none
    if video.ndim == 5 and video.shape[1] % t:
        raise ValueError(
            f"a clip of {video.shape[1]} frames does not divide into the slots of {_windows(encoder)}: give a multiple "
            f"of {t} frames"
        )
    x, grid = encoder.embedded(encoder.padded(video, encoder.config.multiple))
    modes = encoder.config.modes
    tokens = _onward(encoder, x, grid, 1, list(modes))
    return {mode: tokens[mode] for mode in modes}


def _onward(
    encoder: LiteFrameEncoder, stream: Tensor | Pending, grid: tuple[int, int], first: int, modes: Sequence[str]
) -> dict[str, Tensor]:
    """From block `first` on, for modes that have been the same so far; they part after a block."""
    for number in range(first, encoder.config.depth + 1):
        stream = encoder.blocks[number - 1](stream)
        if number not in encoder.config.kernels:
            continue
        ways: dict[Stride | None, list[str]] = {}
        for mode in modes:
            ways.setdefault(encoder.config.modes[mode].get(number), []).append(mode)
        stream, found = summed(stream), dict[str, Tensor]()
        for stride, some in ways.items():
            conv: Any = encoder.downsample[str(number)]
            x, smaller = (stream, grid) if stride is None else conv(stream, grid, stride)
            found |= _onward(encoder, x, smaller, number + 1, some)
        return found
    features = encoder.emitted(stream, grid)
    return dict.fromkeys(modes, features)


def extract(encoder: LiteFrameEncoder, mode: str) -> LiteFrameEncoder:
    """See LiteFrameEncoder.extract."""
    config, kept = encoder.config.of_mode(mode), dict[str, Tensor]()
    for name, weight in encoder.state_dict().items():
        part, _, rest = name.partition(".")
        block, _, kind = rest.partition(".")
        if part != "downsample":
            kept[name] = weight.clone()
        elif int(block) in config.downsample:
            kept[name] = block_sums(weight, config.downsample[int(block)]) if kind == "weight" else weight.clone()
    with torch.device("meta"):
        student = LiteFrameEncoder(config)
    student.load_state_dict(kept, assign=True)
    return student.train(encoder.training)


def upgrade(encoder: LiteFrameEncoder, modes: dict[str, dict[int, Stride]]) -> LiteFrameEncoder:
    """An elastic encoder that computes what an ordinary one does wherever no other mode is named.

    A kernel becomes the largest one by giving each of its taps to the taps that it covers, in equal parts; block sums
    give it back, to the bit where there are 2, 4, 8, ... parts. A strided conv that only other modes have starts as the
    mean. The other modes have learned nothing yet.

    Args:
        encoder: an ordinary student.
        modes: {name: downsample} of the compressions that it shall have; its own may be left out.

    Raises:
        ValueError: it is elastic already, or the modes do not fit it.
    """
    if encoder.config.modes:
        raise ValueError(
            f"the encoder is elastic already, with modes {', '.join(encoder.config.modes)}; take one of them "
            "(liteframe extract) and upgrade that"
        )
    config = replace(encoder.config, modes=modes)
    if not config.modes:
        raise ValueError("there are no modes: name those that the encoder shall have")
    elastic = LiteFrameEncoder(config).to(encoder.pos_embed)
    weights = encoder.state_dict()
    for block, kernel in config.kernels.items():
        if block in config.downsample:
            name = f"downsample.{block}.weight"
            weights[name] = _in_parts(weights[name], kernel)
    elastic.load_state_dict(elastic.state_dict() | weights)
    return elastic.train(encoder.training)


def standard_modes(downsample: Mapping[int, Stride]) -> dict[str, dict[int, Stride]]:
    """Modes from 4x to 64x of a student with the paper's strides, (2,2,2) and then (2,1,1), after whatever blocks.

    Raises:
        ValueError: it has others.
    """
    if list(downsample.values()) != [(2, 2, 2), (2, 1, 1)]:
        raise ValueError(
            f"the encoder's strides are {dict(downsample)}; modes are known for (2,2,2), then (2,1,1): name yours"
        )
    first, second = downsample
    return {
        "4x": {first: (1, 2, 2)},
        "8x": {first: (2, 2, 2)},
        "16x": dict(downsample),
        "32x": {first: (2, 2, 2), second: (4, 1, 1)},
        "64x": {first: (2, 2, 2), second: (2, 2, 2)},
    }


def load_one_mode(folder: str | os.PathLike[str], mode: str | None) -> LiteFrameEncoder:
    """An ordinary student from an encoder folder: what is there, or one mode of an elastic one.

    Raises:
        FileNotFoundError: there is no encoder.
        ValueError: an elastic encoder and no mode of it, or a mode of an ordinary one.
    """
    encoder = LiteFrameEncoder.from_pretrained(folder)
    try:
        refuse_modes(encoder.config, mode)
        return encoder if mode is None else encoder.extract(mode)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def refuse_modes(config: LiteFrameConfig, mode: str | None) -> None:
    """Refuse an elastic encoder where one compression is needed and none is named; raises ValueError."""
    if config.modes and mode is None:
        raise ValueError(
            f"the encoder is elastic, with modes {', '.join(config.modes)}: name one with --mode, or take it out of it "
            "(liteframe extract)"
        )


def _in_parts(kernel: Tensor, largest: Stride) -> Tensor:
    """[C,t,h,w] -> [C,T,H,W] whose block sums it is."""
    parts = math.prod(largest) // math.prod(kernel.shape[1:])
    for axis, size in enumerate(largest, start=1):
        kernel = kernel.repeat_interleave(size // kernel.shape[axis], axis)
    return kernel / parts


def _windows(encoder: LiteFrameEncoder) -> str:
    return ", ".join(f"{mode} ({window[0]} frames)" for mode, window in encoder.config.windows.items())
