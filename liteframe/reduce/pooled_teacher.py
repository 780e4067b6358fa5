"""A teacher followed by WAP: the targets of CTD, live or into a cache, and the paper's baseline "+ WAP".

Shapes: B videos, T frames of HxW pixels, T' = ceil(T/t) slots, (h,w) pooled grid, C teacher channels.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from liteframe_kernels.weighted_average_pool.reference import frame_relative, query_logits
from torch import Tensor, nn
from typing_extensions import override

from liteframe.models.teacher.base import Teacher, TeacherFeatures
from liteframe.reduce.base import Window
from liteframe.reduce.wap import SoftmaxOver, real_slots, weighted_average_pool


class Pooled(NamedTuple):
    """A teacher's features after WAP.

    Attributes:
        tokens: float32 [B,T',h,w,C].
        slots: bool [B,T'], False where no real frame lies.
        logits: float32 [B,T,rows,columns] over the teacher's own grid (T pairs for a teacher of pairs), what its
            patches were weighed by; None where they were not asked for, and for a teacher without saliency, whose
            patches weigh alike.
        log_weights: float32 [B,T',h,w], the log-sum-exp of the logits of a token's window, from which tokens of larger
            windows follow (see coarser); None where they were not asked for.
    """

    tokens: Tensor
    slots: Tensor
    logits: Tensor | None
    log_weights: Tensor | None = None


def coarser(pooled: Pooled, factor: Window) -> Pooled:
    """What WAP gives over windows `factor` times as large, from the tokens of smaller ones: exactly.

    The softmax over a large window is that over its small ones by their log-sum-exp, times that within each of them.

    Args:
        pooled: with log_weights.
        factor: (t,h,w), how many small windows a large one has along each axis; the last one in time may lack some.

    Raises:
        ValueError: there are no log_weights, or the factor does not divide the grid.
    """
    if factor == (1, 1, 1):
        return pooled
    if pooled.log_weights is None:
        raise ValueError("pooled features without log_weights: larger windows do not follow from them")
    tokens = weighted_average_pool(pooled.tokens, logits=pooled.log_weights, kernel=factor, precise=True)
    log_weights = _log_sums(pooled.log_weights, factor)
    return Pooled(tokens, real_slots(pooled.slots, factor[0]), pooled.logits, log_weights)


def _log_sums(logits: Tensor, kernel: Window) -> Tensor:
    """The log-sum-exp over each window, [B,T,h,w] -> [B,ceil(T/t),h/kh,w/kw]; the last one may lack frames."""
    t, h, w = kernel
    whole = F.pad(logits, (0, 0, 0, 0, 0, -logits.shape[1] % t), value=-math.inf)
    blocks = whole.unflatten(3, (-1, w)).unflatten(2, (-1, h)).unflatten(1, (-1, t))  # [B,T',t,h',kh,w',kw]
    return blocks.logsumexp((2, 4, 6))


def factor_between(small: Window, large: Window) -> Window:
    """How many small windows a large one has along each axis.

    Raises:
        ValueError: it is not made of whole ones.
    """
    if any(theirs % ours for ours, theirs in zip(small, large, strict=True)):
        raise ValueError(f"windows of {large} are not made of windows of {small}")
    t, h, w = (theirs // ours for ours, theirs in zip(small, large, strict=True))
    return t, h, w


class PooledTeacher(nn.Module):
    """The one road from a teacher to pooled features; float32 from the teacher's last layer on, whatever autocast says.

    Args:
        teacher: gives the features, frozen.
        window: (t,h,w) of WAP over frames, rows and columns of patches.
        softmax_over: "block" lets the members of a window compete, "frame" all patches of a frame.

    Raises:
        ValueError: the window is not of whole features of a teacher that sees several frames at a time.
    """

    def __init__(self, teacher: Teacher, window: Window = (4, 2, 2), softmax_over: SoftmaxOver = "block"):
        super().__init__()
        self.teacher, self.window, self.softmax_over = teacher, window, softmax_over
        frames, rows, columns = window
        if frames % teacher.temporal_patch:
            raise ValueError(
                f"a window of {frames} frames does not hold whole features of teacher {teacher.name}, which sees "
                f"{teacher.temporal_patch} frames at a time; compress a multiple of {teacher.temporal_patch} frames"
            )
        self._kernel = (frames // teacher.temporal_patch, rows, columns)  # over features

    def forward(
        self, video: Tensor, frame_mask: Tensor | None = None, *, logits: bool = False, log_weights: bool = False
    ) -> Pooled:
        """Features of a video.

        Args:
            video: [B,T,3,H,W], normalized as the teacher wants it, any T >= 1: the last window is filled with copies of
                the last frame, which weigh nothing.
            frame_mask: bool [B,T], False for frames that only fill the clip and weigh nothing; None: all are real.
            logits: whether to return them too.
            log_weights: whether to return them too.

        Raises:
            ValueError: the window does not divide the teacher's grid, or the frames do not fit the teacher.
        """
        features = self.teacher(video)
        weighed_by = self.logits(features) if logits else None
        return self.pool(features, frame_mask, log_weights=log_weights)._replace(logits=weighed_by)

    def pool(self, features: TeacherFeatures, frame_mask: Tensor | None = None, *, log_weights: bool = False) -> Pooled:
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
        slots = real_slots(mask, self._kernel[0])
        return Pooled(tokens, slots, None, self._log_weights(features, mask) if log_weights else None)

    def _log_weights(self, features: TeacherFeatures, mask: Tensor) -> Tensor:
        """Float32 [B,T',h,w]: of each window, the log-sum-exp of its logits, -inf where no real frame lies."""
        logits = self.logits(features)
        if logits is None:
            logits = torch.zeros(features.patches.shape[:-1], device=features.patches.device)
        if self.softmax_over == "frame":
            logits = frame_relative(logits)
        return _log_sums(logits.masked_fill(~mask[:, :, None, None], -math.inf), self._kernel)

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
