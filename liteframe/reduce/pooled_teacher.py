"""What a trained student is compared with: its teacher's own features, pooled, without any training."""

from __future__ import annotations

from torch import Tensor, nn

from liteframe.models.teacher.base import Teacher
from liteframe.reduce.wap import weighted_average_pool


class PooledTeacher(nn.Module):
    """The teacher followed by WAP: the grid of a LiteFrame encoder at the teacher's cost (paper, "+ WAP").

    Args:
        teacher: gives the features, frozen.
        kernel: WAP window over frames, rows and columns of patches.
    """

    def __init__(self, teacher: Teacher, kernel: tuple[int, int, int] = (4, 2, 2)) -> None:
        super().__init__()
        self.teacher = teacher
        self.kernel = kernel

    def forward(self, video: Tensor) -> Tensor:
        """Video `[B, T, 3, H, W]` to features `[B, ceil(T / t), h, w, C]`."""
        features = self.teacher(video)
        return weighted_average_pool(features.patches, query=features.query, logits=features.logits, kernel=self.kernel)
