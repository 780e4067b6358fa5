"""Start a student from its teacher or a larger student: weight selection (arXiv 2311.18823), by whole heads.

One set of residual channels, one of heads (with one of dimensions inside a head) and one of MLP channels are used in
every tensor that they index. The blocks are the first ones: of the teacher, or of each stage of a larger student
(a stage ends with a strided conv).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.encoder import LiteFrameEncoder, resample_positions
from liteframe.models.student.mixer import Kept
from liteframe.models.student.mixers import MIXERS, StridedConv
from liteframe.models.teacher.base import Teacher
from liteframe.models.teacher.vit_weights import VitWeights

# What may differ between a student and the larger one that it is cut from.
SIZES = ("dim", "depth", "heads", "mlp_dim", "downsample")


@dataclass(frozen=True)
class Selection:
    """What a student takes from its teacher.

    Attributes:
        weights: tensors for the student's embeddings, blocks and head, under the names of its state dict.
        random: names of what the teacher cannot provide (cls_token of a teacher without cls, pos_embed of one with
            rotary positions alone, blocks.*.mlp of one with gated MLPs): it keeps the student's own random start.
        differences: what the teacher computes otherwise than a student does, so that one of the teacher's own size
            comes near its features but does not repeat them; a sentence each.
    """

    weights: dict[str, Tensor]
    random: tuple[str, ...]
    differences: tuple[str, ...]


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

    The head scatters the residual channels back to where they were in the teacher; features of inner blocks (deepstack)
    it gives as zeros. Mixers start as the identity and
    strided convs as the mean, so a student of the teacher's own size repeats its patch features (before a final norm,
    if the teacher has one), but for what `differences` names.

    Raises:
        ValueError: the teacher is smaller than the student in some respect, or its blocks are of another kind.
    """
    vit = teacher.tower.vit_weights()
    if vit.dim * (1 + config.deepstack) != config.teacher_dim:
        raise ValueError(
            f"teacher_dim={config.teacher_dim}, but the teacher has {vit.dim} channels and deepstack={config.deepstack}"
        )
    _check_sizes(vit, config, "teacher")
    kept = _kept(vit, config)
    weights = _cut(vit, config, range(config.depth), kept, mixer={})
    head = torch.zeros(config.teacher_dim, config.dim)
    head[kept.residual, torch.arange(config.dim)] = 1.0
    weights |= {"head.weight": head, "head.bias": torch.zeros(config.teacher_dim)}
    weights = {name: tensor.float().cpu().clone() for name, tensor in weights.items()}
    return Selection(weights, _random(vit, weights), vit.differences)


def select_from_vit(other: Teacher, config: LiteFrameConfig) -> Selection:
    """Cut the weights of a ViT that is not the student's teacher; the head is left to its random start.

    The ViT's own mean and std are folded into the patch embedding, since the student sees frames as its teacher does.

    Raises:
        ValueError: the ViT is smaller than the student in some respect, or its blocks are of another kind.
    """
    vit = other.tower.vit_weights()
    _check_sizes(vit, config, "ViT")
    weights = _cut(vit, config, range(config.depth), _kept(vit, config), mixer={})
    weights = {name: tensor.float().cpu().clone() for name, tensor in weights.items()}
    # (pixel - mean) / std of the ViT = frame * scale + shift, where frame is normalized as the student's are.
    (mean, std), (own_mean, own_std) = (
        torch.tensor([statistics.image_mean, statistics.image_std]) for statistics in (other, config)
    )
    scale, shift = own_std / std, (own_mean - mean) / std  # [3]
    patch = weights["patch_embed.weight"]  # [C,3,p,p]
    weights["patch_embed.bias"] += torch.einsum("cxhw,x->c", patch, shift)
    weights["patch_embed.weight"] = patch * scale[:, None, None]
    return Selection(weights, _random(vit, weights), vit.differences)


def select_from_student(large: LiteFrameEncoder, config: LiteFrameConfig) -> LiteFrameEncoder:
    """A smaller student with a larger one's weights: its mixers, its strided convs and its head are cut as well.

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
    kept = _kept(vit, config)
    weights = _cut(vit, config, blocks, kept, mixer=MIXERS[config.temporal_mixer].axes(kept))
    for number, block in zip(config.kernels, large.config.kernels, strict=True):
        for name, indices in StridedConv.axes(kept).items():
            weights[f"downsample.{number}.{name}"] = _take(state[f"downsample.{block}.{name}"], indices)
    all_rows = torch.arange(config.teacher_dim)
    weights["head.weight"] = _take(state["head.weight"], (all_rows, kept.residual))  # [teacher_dim,C]
    weights["head.bias"] = state["head.bias"]
    student = LiteFrameEncoder(config)
    student.load_state_dict(weights)
    return student


def initialize_student(student: LiteFrameEncoder, teacher: Teacher) -> Selection:
    """Load select_weights into a new student, in place; mixers, strided convs and what is random stay as they start.

    Returns:
        What was loaded.

    Raises:
        ValueError: see select_weights.
    """
    selection = select_weights(teacher, student.config)
    student.load_state_dict(student.state_dict() | selection.weights)
    return selection


def _kept(vit: VitWeights, config: LiteFrameConfig) -> Kept:
    """What the student keeps of each kind of channel; it is smaller in each, see _check_sizes."""
    width = vit.dim // vit.heads
    inside = uniform_indices(width, config.dim // config.heads)  # channels of a head
    heads = (uniform_indices(vit.heads, config.heads)[:, None] * width + inside).flatten()  # [C]
    return Kept(
        residual=uniform_indices(vit.dim, config.dim),
        heads=heads,
        qkv=(torch.arange(3)[:, None] * vit.dim + heads).flatten(),  # [3C]
        hidden=uniform_indices(vit.mlp_dim or config.hidden, config.hidden),
    )


def _block_axes(kept: Kept) -> dict[str, tuple[Tensor, ...]]:
    """Indices along each axis of a block's parameters, without its mixer."""
    residual, heads, qkv, hidden = kept
    return {
        "norm1.weight": (residual,), "norm1.bias": (residual,), "norm2.weight": (residual,), "norm2.bias": (residual,),
        "attn.qkv.weight": (qkv, residual), "attn.qkv.bias": (qkv,),
        "attn.proj.weight": (residual, heads), "attn.proj.bias": (residual,),
        "mlp.fc1.weight": (hidden, residual), "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (residual, hidden), "mlp.fc2.bias": (residual,),
        "ls1": (residual,), "ls2": (residual,),
    }  # fmt: skip


def _cut(
    vit: VitWeights,
    config: LiteFrameConfig,
    blocks: Sequence[int],
    kept: Kept,
    mixer: dict[str, tuple[Tensor, ...]],
) -> dict[str, Tensor]:
    """Embeddings and blocks; `blocks` are the numbers in `vit` of the student's blocks, `mixer` the axes of theirs."""
    residual = kept.residual
    axes = _block_axes(kept) | {f"temporal.{name}": indices for name, indices in mixer.items()}
    patch = _resize_patches(vit.tensors["patch_embed.weight"], config.patch_size)  # [C',3,p,p]
    weights = {
        "patch_embed.weight": _take(patch, (residual,)),
        "patch_embed.bias": _take(vit.tensors["patch_embed.bias"], (residual,)),
    }
    if "cls_token" in vit.tensors:
        weights["cls_token"] = vit.tensors["cls_token"][..., residual]  # [1,1,C]
    if "pos_embed" in vit.tensors:
        side = config.image_size // config.patch_size
        positions = vit.tensors["pos_embed"][..., residual]  # [1,1+h*w,C]
        if vit.grid != (side, side):
            positions = resample_positions(positions.float(), vit.grid, (side, side))  # [1,1+side*side,C]
        weights["pos_embed"] = positions
    for number, block in enumerate(blocks):
        for name, indices in axes.items():
            if vit.mlp_dim is None and name.startswith(("mlp.", "ls2")):
                continue
            weights[f"blocks.{number}.{name}"] = _take(vit.tensors[f"blocks.{block}.{name}"], indices)
    return weights


def _random(vit: VitWeights, weights: dict[str, Tensor]) -> tuple[str, ...]:
    """What a student has and these weights do not, the head aside."""
    missing = [name for name in ("cls_token", "pos_embed") if name not in weights]
    return (*missing, "blocks.*.mlp") if vit.mlp_dim is None else tuple(missing)


def _take(tensor: Tensor, indices: tuple[Tensor, ...]) -> Tensor:
    """Select along the first axes, one set of indices each."""
    for axis, index in enumerate(indices):
        tensor = tensor.index_select(axis, index.to(tensor.device))
    return tensor


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
    pairs = {
        "dim": (config.dim, vit.dim),
        "depth": (config.depth, vit.depth),
        "heads": (config.heads, vit.heads),
        "dim / heads": (config.dim // config.heads, vit.dim // vit.heads),
        "mlp_dim": (config.hidden, vit.mlp_dim),
    }
    too_large = [
        f"{name} (student {ours}, {source} {theirs})"
        for name, (ours, theirs) in pairs.items()
        if theirs is not None and ours > theirs
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
