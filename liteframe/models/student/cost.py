"""Parameters and FLOPs from a configuration alone.

FLOPs are two per multiply-add, counted in linear and convolution layers, as the paper's table does; the two attention
products are counted apart. Norms, activations, LayerScale and additions are left out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.mixer import frame_attention_flops
from liteframe.models.student.mixers import MIXERS
from liteframe.models.student.strides import Stride, of_a_still


@dataclass(frozen=True)
class Cost:
    """What encoding takes.

    Attributes:
        params: weights of the encoder.
        flops: of linear and convolution layers, for all frames.
        attention_flops: of the products QK and AV, for all frames, not contained in `flops`.
        tokens_per_frame: tokens that a language model receives for one input frame, after the VLM's pixel shuffle.
    """

    params: int
    flops: int
    attention_flops: int
    tokens_per_frame: float


@dataclass(frozen=True)
class VitShape:
    """A plain ViT (cls token, learned positions, LayerScale, qkv bias, no final norm), frame by frame."""

    dim: int
    depth: int
    mlp_dim: int
    patch_size: int
    image_size: int


# Teacher of the paper, and its student before any compression.
INTERNVIT_300M = VitShape(dim=1024, depth=24, mlp_dim=4096, patch_size=14, image_size=448)
VIT_BASE = VitShape(dim=768, depth=12, mlp_dim=3072, patch_size=14, image_size=448)


def cost(
    config: LiteFrameConfig | VitShape,
    frames: int = 256,
    size: int | tuple[int, int] | None = None,
    *,
    shuffle: int = 2,
    all_modes: bool = False,
    still: bool = False,
) -> Cost:
    """Count parameters and FLOPs of encoding `frames` frames.

    Args:
        config: a student (encoded in clips of clip_frames, each padded to the temporal stride) or a plain ViT; an
            elastic student in the mode of its `downsample` (LiteFrameConfig.of_mode gives the others).
        frames: input frames.
        size: input pixels, one number or (height, width); None is the config's image_size (448 by default).
        shuffle: patches per side that the VLM's pixel shuffle folds into one token.
        all_modes: count FLOPs of an elastic student in all modes at once, as a step of its training computes them.
        still: count `frames` images, each encoded by itself as `LiteFrameEncoder.still` does.

    Raises:
        ValueError: no frame, or a size that the strides do not divide.
    """
    if frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    size = config.image_size if size is None else size
    height, width = (size, size) if isinstance(size, int) else size
    p = config.patch_size
    t, h, w = config.compression if isinstance(config, LiteFrameConfig) else (1, 1, 1)
    if height < 1 or width < 1 or height % (p * h) or width % (p * w):
        raise ValueError(f"{height}x{width} pixels: height must be a multiple of {p * h}, width of {p * w}")
    clip = 1 if still else config.clip_frames if isinstance(config, LiteFrameConfig) else frames
    clips = [clip] * (frames // clip) + ([frames % clip] if frames % clip else [])
    ways: list[Mapping[int, Stride]] = [{} if isinstance(config, VitShape) else config.downsample]
    whole = t
    if all_modes and isinstance(config, LiteFrameConfig) and config.modes:
        ways, whole = list(config.modes.values()), config.multiple[0]
    if still:
        ways, t, whole = [of_a_still(way) for way in ways], 1, 1
    grid = (height // p, width // p)
    counts = {length: _clip(config, -(-length // whole) * whole, grid, ways, still) for length in set(clips)}
    return Cost(
        params=_params(config),
        flops=sum(counts[length].flops for length in clips),
        attention_flops=sum(counts[length].attention for length in clips),
        tokens_per_frame=(height // p // h) * (width // p // w) / (shuffle * shuffle * t),
    )


@dataclass
class _Count:
    flops: int = 0
    attention: int = 0


def _clip(
    config: LiteFrameConfig | VitShape,
    frames: int,
    grid: tuple[int, int],
    ways: Sequence[Mapping[int, Stride]],
    still: bool,
) -> _Count:
    """One clip; its frames are a multiple of the temporal strides. Ways that are the same so far are counted once."""
    count = _Count(flops=2 * frames * math.prod(grid) * 3 * config.patch_size**2 * config.dim)
    _onward(config, frames, grid, ways, 1, count, still)
    return count


def _onward(
    config: LiteFrameConfig | VitShape,
    frames: int,
    grid: tuple[int, int],
    ways: Sequence[Mapping[int, Stride]],
    first: int,
    count: _Count,
    still: bool,
) -> None:
    c, hidden = config.dim, _hidden(config)
    student = config if isinstance(config, LiteFrameConfig) else None
    for block in range(first, config.depth + 1):
        tokens = math.prod(grid) + 1
        count.flops += 2 * frames * tokens * (4 * c * c + 2 * c * hidden)
        if student is None or (frames == 1 and not still):  # a single frame is mixed with nothing
            count.attention += frame_attention_flops(c, frames, tokens)
        else:
            mixer = MIXERS[student.temporal_mixer]
            count.flops += mixer.flops(student, frames, tokens)
            count.attention += mixer.attention_flops(student, frames, tokens)
        if all(block not in way for way in ways):
            continue
        for stride in {way.get(block) for way in ways}:
            some = [way for way in ways if way.get(block) == stride]
            t, h, w = stride or (1, 1, 1)
            fewer, smaller = frames // t, (grid[0] // h, grid[1] // w)
            if stride is not None:
                # cls sees the kernel already summed over its spatial taps: t products a channel.
                count.flops += 2 * fewer * c * (math.prod(smaller) * t * h * w + t)
            _onward(config, fewer, smaller, some, block + 1, count, still)
        return
    if student is not None:
        count.flops += 2 * frames * math.prod(grid) * c * student.teacher_dim


def _params(config: LiteFrameConfig | VitShape) -> int:
    c, hidden = config.dim, _hidden(config)
    positions = 1 + (config.image_size // config.patch_size) ** 2
    block = 2 * 2 * c + (3 * c * c + 3 * c) + (c * c + c) + (c * hidden + hidden) + (hidden * c + c) + 2 * c
    total = (3 * config.patch_size**2 * c + c) + c + positions * c + config.depth * block
    if isinstance(config, LiteFrameConfig):
        total += config.depth * MIXERS[config.temporal_mixer].params(config)
        total += sum(math.prod(stride) * c + c for stride in config.kernels.values())
        total += c * config.teacher_dim + config.teacher_dim
    return total


def _hidden(config: LiteFrameConfig | VitShape) -> int:
    return config.hidden if isinstance(config, LiteFrameConfig) else config.mlp_dim
