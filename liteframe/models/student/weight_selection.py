"""Start a student from its teacher or a larger student: weight selection (arXiv 2311.18823), by whole heads.

One set of residual channels, one of heads (with one of dimensions inside a head) and one of MLP channels are used in
every tensor that they index. The blocks are the first ones: of the teacher, or of each stage of a larger student
(a stage ends with a strided conv).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.teacher.base import Teacher
from liteframe.models.teacher.vit_weights import VitWeights

# What may differ between a student and the larger one that it is cut from.
SIZES = ("dim", "depth", "heads", "mlp_dim", "downsample")


@dataclass(frozen=True)
class Selection:
    """Weights for a student.

    Attributes:
        weights: a tensor for every entry of the student's state dict.
        random: names that the teacher cannot provide (cls_token of a teacher without cls, pos_embed of one with rotary
            positions), filled at random.
    """

    weights: dict[str, Tensor]
    random: tuple[str, ...]


def uniform_indices(total: int, count: int) -> Tensor:
    """`count` distinct indices spread evenly over range(total): every (total/count)-th, else a rounded linspace.

    Raises:
        ValueError: count exceeds total.
    """
    if count > total:
        raise ValueError(f"cannot select {count} of {total}")
    if total % count == 0:
        return torch.arange(count) * (total // count)
    return torch.linspace(0, total - 1, count, dtype=torch.float64).round().long()


def select_weights(teacher: Teacher, config: LiteFrameConfig) -> Selection:
    """Cut the teacher's weights to the student's shape.

    Temporal convs start at zero, strided convs at the mean, and the head scatters the residual channels back to where
    they were in the teacher, so that a student of the teacher's own size repeats its patch features (before a final
    norm, if the teacher has one).

    Raises:
        ValueError: the teacher is smaller than the student in some respect, or its blocks are of another kind.
    """
    vit = teacher.tower.vit_weights()
    if vit.dim != config.teacher_dim:
        raise ValueError(f"teacher_dim={config.teacher_dim}, but the teacher has {vit.dim} channels")
    _check_sizes(vit, config, "teacher")
    residual = uniform_indices(vit.dim, config.dim)
    weights = _cut(vit, config, range(config.depth), residual) | _own_parts(config, residual)
    random = [name for name in ("cls_token", "pos_embed") if name not in weights]
    for name in random:
        tokens = 1 if name == "cls_token" else 1 + (config.image_size // config.patch_size) ** 2
        weights[name] = nn.init.trunc_normal_(torch.empty(1, tokens, config.dim), std=0.02)
    return Selection({name: tensor.float().cpu().clone() for name, tensor in weights.items()}, tuple(random))


def select_from_student(large: LiteFrameEncoder, config: LiteFrameConfig) -> LiteFrameEncoder:
    """A smaller student with a larger one's weights: its temporal and strided convs and its head are cut as well.

    The head keeps all of its rows, so the output stays in the teacher's space. With the larger student's own config the
    result repeats it exactly.

    Raises:
        ValueError: the configs differ in more than dim, depth, heads, mlp_dim and the blocks after which the strided
            convs stand, or something would have to grow; the message names each of them.
    """
    blocks = _matching_blocks(large.config, config)
    state, side = large.state_dict(), config.image_size // config.patch_size
    vit = VitWeights(state, large.config.heads, large.config.depth, large.config.dim, grid=(side, side))
    _check_sizes(vit, config, "encoder")
    residual = uniform_indices(vit.dim, config.dim).to(state["head.weight"].device)
    weights = _cut(vit, config, blocks, residual)
    for number, block in enumerate(blocks):
        if config.temporal_mixer == "conv":
            for name in ("weight", "bias"):
                weights[f"blocks.{number}.temporal.{name}"] = state[f"blocks.{block}.temporal.{name}"][residual]
    for number, block in zip(config.downsample, large.config.downsample, strict=True):
        for name in ("weight", "bias"):
            weights[f"downsample.{number}.{name}"] = state[f"downsample.{block}.{name}"][residual]
    weights |= {"head.weight": state["head.weight"][:, residual], "head.bias": state["head.bias"]}
    student = LiteFrameEncoder(config)
    student.load_state_dict(weights)
    return student


def initialize_student(student: LiteFrameEncoder, teacher: Teacher) -> Selection:
    """Load select_weights into the student, every tensor of it, in place; returns what was loaded.

    Raises:
        ValueError: see select_weights.
    """
    selection = select_weights(teacher, student.config)
    student.load_state_dict(selection.weights)
    return selection


def _cut(vit: VitWeights, config: LiteFrameConfig, blocks: Sequence[int], residual: Tensor) -> dict[str, Tensor]:
    """Embeddings and blocks; `blocks` are the numbers in `vit` of the student's blocks."""
    assert config.mlp_dim is not None
    hidden = uniform_indices(vit.tensors["blocks.0.mlp.fc1.weight"].shape[0], config.mlp_dim)
    inside = uniform_indices(vit.dim // vit.heads, config.dim // config.heads)
    # Rows of q, k or v: the kept dimensions of the kept heads.
    rows = (uniform_indices(vit.heads, config.heads)[:, None] * (vit.dim // vit.heads) + inside).flatten()
    qkv = (torch.arange(3)[:, None] * vit.dim + rows).flatten()

    patch = _resize_patches(vit.tensors["patch_embed.weight"], config.patch_size)
    weights = {"patch_embed.weight": patch[residual], "patch_embed.bias": vit.tensors["patch_embed.bias"][residual]}
    if "cls_token" in vit.tensors:
        weights["cls_token"] = vit.tensors["cls_token"][..., residual]
    if "pos_embed" in vit.tensors:
        side = config.image_size // config.patch_size
        weights["pos_embed"] = _resize_positions(vit.tensors["pos_embed"][..., residual], vit.grid, side)
    axes: dict[str, tuple[Tensor, ...]] = {
        "norm1.weight": (residual,), "norm1.bias": (residual,), "norm2.weight": (residual,), "norm2.bias": (residual,),
        "attn.qkv.weight": (qkv, residual), "attn.qkv.bias": (qkv,),
        "attn.proj.weight": (residual, rows), "attn.proj.bias": (residual,),
        "mlp.fc1.weight": (hidden, residual), "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (residual, hidden), "mlp.fc2.bias": (residual,),
        "ls1": (residual,), "ls2": (residual,),
    }  # fmt: skip
    for number, block in enumerate(blocks):
        for name, indices in axes.items():
            tensor = vit.tensors[f"blocks.{block}.{name}"]
            for axis, index in enumerate(indices):
                tensor = tensor.index_select(axis, index.to(tensor.device))
            weights[f"blocks.{number}.{name}"] = tensor
    return weights


def _own_parts(config: LiteFrameConfig, residual: Tensor) -> dict[str, Tensor]:
    """What a student has and a teacher has not: temporal and strided convs, head."""
    parts: dict[str, Tensor] = {}
    if config.temporal_mixer == "conv":
        for number in range(config.depth):
            parts[f"blocks.{number}.temporal.weight"] = torch.zeros(config.dim, config.temporal_kernel)
            parts[f"blocks.{number}.temporal.bias"] = torch.zeros(config.dim)
    for block, stride in config.downsample.items():
        parts[f"downsample.{block}.weight"] = torch.full((config.dim, *stride), 1.0 / math.prod(stride))
        parts[f"downsample.{block}.bias"] = torch.zeros(config.dim)
    head = torch.zeros(config.teacher_dim, config.dim)
    head[residual, torch.arange(config.dim)] = 1.0
    return parts | {"head.weight": head, "head.bias": torch.zeros(config.teacher_dim)}


def _matching_blocks(large: LiteFrameConfig, small: LiteFrameConfig) -> list[int]:
    """The larger student's block for each block of the smaller one: the first ones of each stage."""
    theirs, ours = large.to_dict(), small.to_dict()
    problems = [
        f"{key} ({ours[key]!r}, in the encoder {theirs[key]!r})"
        for key in ours
        if key not in SIZES and ours[key] != theirs[key]
    ]
    blocks: list[int] = []
    if list(small.downsample.values()) != list(large.downsample.values()):
        problems.append(f"strides of downsample ({small.downsample}, in the encoder {large.downsample})")
    else:
        ends = zip([0, *small.downsample, small.depth], [0, *large.downsample, large.depth], strict=True)
        for (first, start), (last, end) in pairwise(ends):
            if last - first > end - start:
                problems.append(f"blocks {first + 1}-{last} (in the encoder this stage is {start + 1}-{end})")
            blocks += range(start, start + last - first)
    if problems:
        raise ValueError(f"the encoder's weights cannot be cut to another {', '.join(problems)}")
    return blocks


def _check_sizes(vit: VitWeights, config: LiteFrameConfig, source: str) -> None:
    assert config.mlp_dim is not None
    pairs = {
        "dim": (config.dim, vit.dim),
        "depth": (config.depth, vit.depth),
        "heads": (config.heads, vit.heads),
        "dim / heads": (config.dim // config.heads, vit.dim // vit.heads),
        "mlp_dim": (config.mlp_dim, vit.tensors["blocks.0.mlp.fc1.weight"].shape[0]),
    }
    too_large = [
        f"{name} (student {ours}, {source} {theirs})" for name, (ours, theirs) in pairs.items() if ours > theirs
    ]
    if too_large:
        raise ValueError(
            f"the student cannot be cut from a smaller {source}: {', '.join(too_large)}; "
            "make the student smaller or start it from random weights"
        )


def _resize_patches(weight: Tensor, size: int) -> Tensor:
    """[C,3,p,p] -> [C,3,size,size], scaled so that a uniform colour gives the same response."""
    if weight.shape[-1] == size:
        return weight
    resized = F.interpolate(weight.float(), size=(size, size), mode="bicubic", antialias=True)
    return resized * (weight.shape[-1] / size) ** 2


def _resize_positions(table: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """[1,1+h*w,C] -> [1,1+side*side,C]."""
    if grid == (side, side):
        return table
    patches = table[:, 1:].float().unflatten(1, grid).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=(side, side), mode="bicubic", antialias=True)
    return torch.cat([table[:, :1].float(), patches.flatten(2).transpose(1, 2)], dim=1)
