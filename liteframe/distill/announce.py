"""What a CTD run says before it starts."""

from torch import nn

from liteframe.distill.datamodule import ClipDataModule
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.teacher.base import Teacher


def opening_line(student: LiteFrameEncoder, teacher: Teacher, data: ClipDataModule, steps: int) -> str:
    """Who learns from whom, from how many videos, for how long."""
    if (cache := data.target_cache) is None:
        source = f"{_millions(teacher.tower)}, frozen"
    else:
        source = f"{cache.settings.views} views of each video in {cache.folder}, {cache.settings.codec}"
    return (
        f"student of {_millions(student)} parameters learns from {teacher.name} ({source}): {steps} steps of "
        f"{data.batch_size} clips x {data.clip_frames} frames, {len(data.train_entries)} videos, "
        f"{len(data.val_entries)} held out"
    )


def _millions(module: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.2f}M"
