"""A teacher followed by WAP: the targets of CTD, live or into a cache, and the paper's baseline "+ WAP".

Shapes: B videos, T frames of HxW pixels, T' = ceil(T/t) slots, (h,w) pooled grid, C teacher channels.
"""

from typing import NamedTuple

import torch
from liteframe_kernels.weighted_average_pool.reference import query_logits
from torch import Tensor, nn
from typing_extensions import override

from liteframe.models.teacher.base import Teacher, TeacherFeatures
from liteframe.reduce.wap import SoftmaxOver, real_slots, weighted_average_pool


class Pooled(NamedTuple):
    """A teacher's features after WAP.

    Attributes:
        tokens: float32 [B,T',h,w,C].
        slots: bool [B,T'], False where no real frame lies.
        logits: float32 [B,T,rows,columns] over the teacher's own grid (T pairs for a teacher of pairs), what its
            patches were weighed by; None where they were not asked for, and for a teacher without saliency, whose
            patches weigh alike.
    """

    tokens: Tensor
    slots: Tensor
    logits: Tensor | None


class PooledTeacher(nn.Module):
    """The one road from a teacher to pooled features; float32 from the teacher's last layer on, whatever autocast says.

    Args:
        teacher: gives the features, frozen.
        window: (t,h,w) of WAP over frames, rows and columns of patches.
        softmax_over: "block" lets the members of a window compete, "frame" all patches of a frame.

    Raises:
        ValueError: the window is not of whole features of a teacher that sees several frames at a time.
    """

    def __init__(self, teacher: Teacher, window: tuple[int, int, int] = (4, 2, 2), softmax_over: SoftmaxOver = "block"):
        super().__init__()
        self.teacher, self.window, self.softmax_over = teacher, window, softmax_over
        frames, rows, columns = window
        if frames % teacher.temporal_patch:
            raise ValueError(
                f"a window of {frames} frames does not hold whole features of teacher {teacher.name}, which sees "
                f"{teacher.temporal_patch} frames at a time; compress a multiple of {teacher.temporal_patch} frames"
            )
        self._kernel = (frames // teacher.temporal_patch, rows, columns)  # over features

    def forward(self, video: Tensor, frame_mask: Tensor | None = None, *, logits: bool = False) -> Pooled:
        """Features of a video.

        Args:
            video: [B,T,3,H,W], normalized as the teacher wants it, any T >= 1: the last window is filled with copies of
                the last frame, which weigh nothing.
            frame_mask: bool [B,T], False for frames that only fill the clip and weigh nothing; None: all are real.
            logits: whether to return them too.

        Raises:
            ValueError: the window does not divide the teacher's grid, or the frames do not fit the teacher.
        """
        features = self.teacher(video)
        weighed_by = self.logits(features) if logits else None
        return self.pool(features, frame_mask)._replace(logits=weighed_by)

    def pool(self, features: TeacherFeatures, frame_mask: Tensor | None = None) -> Pooled:
        """The second half of `forward`, without logits."""
        patches = features.patches  # [B,features over time,rows,columns,C]
        if frame_mask is None:
            mask = patches.new_ones(patches.shape[:2], dtype=torch.bool)
        else:
            mask = real_slots(frame_mask, self.teacher.temporal_patch)
        tokens = weighted_average_pool(
            patches,
            query=features.query,
            logits=features.logits,
            kernel=self._kernel,
            scope=self.softmax_over,
            frame_mask=mask,
            precise=True,
        )  # [B,T',h,w,C]
        return Pooled(tokens, real_slots(mask, self._kernel[0]), None)

    @staticmethod
    def logits(features: TeacherFeatures) -> Tensor | None:
        """What WAP weighs a teacher's patches by, [B,T,rows,columns], or None."""
        if features.logits is not None:
            return features.logits.float()
        return None if features.query is None else query_logits(features.patches, features.query)


class PooledEncoder(nn.Module):
    """A pooled teacher where a LiteFrame encoder could stand: [B,T,3,H,W] -> [B,T',h,w,C] in the teacher's own type.

    Args:
        pooled: a teacher with WAP behind it; its cost is the teacher's.
    """

    def __init__(self, pooled: PooledTeacher):
        super().__init__()
        self.pooled = pooled

    @override
    def forward(self, video: Tensor) -> Tensor:
        return self.pooled(video).tokens.to(self.pooled.teacher.dtype)
