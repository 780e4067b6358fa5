"""Decoded clips -> raw pooled features of the live teacher, as a training run computes them.

Shapes: B clips, T frames of HxW pixels, T' slots, (h,w) pooled grid, C teacher channels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from lightning.fabric import Fabric
from torch import Tensor

from liteframe.data.preprocess import FrameFormat
from liteframe.distill.clips import RawBatch
from liteframe.distill.speed import whole_batches
from liteframe.models.teacher.base import Teacher
from liteframe.reduce.pooled_teacher import PooledTeacher
from liteframe.reduce.wap import SoftmaxOver


class MadeTargets(NamedTuple):
    """Targets of a batch.

    Attributes:
        pooled: float32 [B,T',h,w,C], before clipping and standardization.
        slots: bool [B,T'], False where no real frame lies.
        frames: uint8 [B,T,3,H,W], what the teacher saw before normalization.
    """

    pooled: Tensor
    slots: Tensor
    frames: Tensor


class TargetMaker:
    """Runs resize, teacher and weighted average pooling on the device of a Fabric, in its precision.

    Args:
        fabric: device and precision.
        teacher: on that device.
        frame_format: size and normalization of frames.
        kernel: (t,h,w) of a block of the pooling.
        scope: of its softmax.
        clips: of a whole batch; others run without compiling for their size.
    """

    def __init__(
        self,
        fabric: Fabric,
        teacher: Teacher,
        frame_format: FrameFormat,
        kernel: tuple[int, int, int],
        scope: SoftmaxOver,
        clips: int,
    ):
        self.fabric, self.pooled_teacher, self.clips = fabric, PooledTeacher(teacher, kernel, scope), clips
        self.transform = frame_format.transform()

    @torch.no_grad()
    def __call__(self, batch: RawBatch) -> MadeTargets:
        """Targets of the clips of a batch; at least one clip.

        Raises:
            ValueError: the frames do not fit the teacher or the blocks.
        """
        batch = self.fabric.to_device(batch)
        parts = batch.frames.split([math.prod(shape) for shape in batch.shapes])
        frames = torch.stack(
            [self.transform.resized(part.view(shape)) for part, shape in zip(parts, batch.shapes, strict=True)]
        )
        with self.fabric.autocast(), whole_batches(len(frames), self.clips):
            pooled, slots, _ = self.pooled_teacher(self.transform.normalized(frames), batch.frame_mask)
        return MadeTargets(pooled, slots, frames)
