"""How a student starts: fitted to its teacher, with weights of its own, its head in the space of the loss."""

import dataclasses
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import nn

from liteframe.distill.targets import Standardizer
from liteframe.files import file_digest
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.elastic import upgrade
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.student.weight_selection import initialize_student, select_from_student, select_from_vit
from liteframe.models.teacher.base import Teacher
from liteframe.models.teacher.load import load_teacher
from liteframe.training.report import tell
from liteframe.training.sharded import copy_into_shards, full_tensor

TIMM = "timm/"  # what a ViT of timm begins with, where a folder could stand


class Start(NamedTuple):
    """Weights other than the teacher's that a student starts from.

    Attributes:
        name: a folder, or `timm/<name>`.
        sha256: of the weights.
        license: as a ViT's metadata states it; None where it states nothing, and for saved encoders.
    """

    name: str
    sha256: str
    license: str | None


def with_preprocessing(config: LiteFrameConfig, teacher: Teacher) -> LiteFrameConfig:
    """The config of a student that sees frames as its teacher does; in their own aspect ratio also where it asks so."""
    resize = config.resize if config.resize == "aspect" else teacher.resize
    merge_size = _fold(teacher) if resize == "aspect" else 1
    return dataclasses.replace(
        config,
        image_mean=teacher.image_mean,
        image_std=teacher.image_std,
        resize=resize,
        merge_size=merge_size,
        deepstack=teacher.deepstack,
    )


def _fold(teacher: Teacher) -> int:
    """Tokens per side that a VLM's projector folds into one."""
    return getattr(teacher.projector, "factor", 1)


def check_grids(config: LiteFrameConfig, teacher: Teacher, size: tuple[int, int]) -> None:
    """Check that student tokens and pooled teacher tokens are the same grid, at the size of the frames.

    Raises:
        ValueError: widths, patch sizes or the frame size do not fit; the message names the value to change.
    """
    if config.teacher_dim != teacher.dim:
        raise ValueError(
            f"model.student.teacher_dim is {config.teacher_dim}, but {teacher.name} has {teacher.dim} channels; "
            f"set it to {teacher.dim}"
        )
    if config.patch_size != teacher.patch_size:
        raise ValueError(
            f"model.student.patch_size is {config.patch_size}, but teacher {teacher.name} has patches of "
            f"{teacher.patch_size} pixels: their tokens would not be the same places; set it to {teacher.patch_size}"
        )
    _, h, w = config.multiple
    fold = _fold(teacher)
    steps = (config.patch_size * h * fold, config.patch_size * w * fold)
    if size[0] % steps[0] or size[1] % steps[1]:
        nearest = tuple(max(1, round(side / step)) * step for side, step in zip(size, steps, strict=True))
        raise ValueError(
            f"frames of {size[0]}x{size[1]} pixels do not divide into the student's tokens"
            f"{f' and the {fold}x{fold} shuffle of the projector' if fold > 1 else ''}: "
            f"height must be a multiple of {steps[0]}, width of {steps[1]}; "
            f"nearest: --data.size [{nearest[0]},{nearest[1]}]"
        )


def build_student(
    config: LiteFrameConfig, teacher: Teacher, init: Literal["weight_selection", "random"], init_from: str | None
) -> tuple[LiteFrameEncoder, Start | None]:
    """A student with weights to start from, and what `init_from` names.

    Its head emits raw features, except after "random" and from a ViT of timm (see head_is_raw).

    Said on stderr: that a saved encoder (`init_from`) larger than the student is cut to it, and what the ViT that the
    weights come from (the teacher, or one of timm) computes otherwise than a student does.

    Raises:
        ValueError: the saved encoder, the ViT or the teacher cannot be cut to the student.
    """
    if init_from is not None:
        try:
            load = _from_timm if init_from.startswith(TIMM) else _from_saved
            return load(config, init_from)
        except ValueError as error:
            raise ValueError(f"--init_from {init_from}: {error}") from error
    student = LiteFrameEncoder(config)
    if init == "weight_selection":
        for difference in initialize_student(student, teacher).differences:
            tell(f"weight selection: teacher {teacher.name} is not repeated exactly, {difference}")
    return student, None


def head_is_raw(init: str, init_from: str | None) -> bool:
    """Whether a new student's head emits raw features of the teacher, as one cut from the teacher or saved does."""
    return init == "weight_selection" if init_from is None else not init_from.startswith(TIMM)


def _from_saved(config: LiteFrameConfig, folder: str) -> tuple[LiteFrameEncoder, Start]:
    saved = LiteFrameEncoder.from_pretrained(folder).float()
    start = Start(folder, file_digest(Path(folder) / "model.safetensors"), None)
    if config.modes and not saved.config.modes:
        tell(f"--init_from {folder}: made elastic, with modes {', '.join(config.modes)}; its own output is unchanged")
        saved = upgrade(saved, config.modes)
    elif saved.config.modes and not config.modes:
        raise ValueError(
            f"it is elastic, with modes {', '.join(saved.config.modes)}, and model.student.modes names none: take one "
            "out of it (liteframe extract) and start from that"
        )
    ours, theirs = config.to_dict(), saved.config.to_dict()
    if ours == theirs:
        return saved.train(), start
    student = select_from_student(saved, config)
    cut = ", ".join(f"{key} {theirs[key]} -> {ours[key]}" for key in ours if ours[key] != theirs[key])
    before, after = (sum(p.numel() for p in model.parameters()) / 1e6 for model in (saved, student))
    tell(f"--init_from {folder}: cut by weight selection from {before:.2f}M to {after:.2f}M parameters ({cut})")
    return student, start


def _from_timm(config: LiteFrameConfig, name: str) -> tuple[LiteFrameEncoder, Start]:
    vit, student = load_teacher(name), LiteFrameEncoder(config)
    selection = select_from_vit(vit, config)
    student.load_state_dict(student.state_dict() | selection.weights)
    tell(f"--init_from {name}: its first {config.depth} blocks; random: {', '.join((*selection.random, 'head'))}")
    for difference in selection.differences:
        tell(f"--init_from {name}: the ViT is not repeated exactly, {difference}")
    return student, Start(name, vit.identity, vit.license)


def unfold_head(head: nn.Linear, standardizer: Standardizer) -> None:
    """Move a head that emits raw features to the standardized space of the loss.

    Channels that a selected head does not reach (rows of zeros) start at the mean of the target, not at zero.
    """
    # The head may be divided over several devices.
    plain = nn.utils.skip_init(nn.Linear, head.in_features, head.out_features, device=standardizer.mean.device)
    for name, parameter in head.named_parameters():
        copy_into_shards(plain.get_parameter(name), full_tensor(parameter))
    with torch.no_grad():
        unreached = (plain.weight == 0).all(1) & (plain.bias == 0)
        plain.bias[unreached] = standardizer.mean[unreached].to(plain.bias.dtype)
    standardizer.unfold(plain)
    for name, parameter in head.named_parameters():
        copy_into_shards(parameter, plain.get_parameter(name))
