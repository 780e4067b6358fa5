"""What a student is trained for: targets out of the teacher's features, and a loss between them and its tokens.

Shapes: B clips, T' slots, (h,w) pooled grid, C teacher channels.
"""

from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from liteframe.distill.statistics import ChannelStatistics
from liteframe.reduce.base import Window


class ClipLosses(NamedTuple):
    """Losses of a batch.

    Attributes:
        per_clip: [B], to be summed and divided by the nominal batch size (losses.batch_loss).
        clipped: scalar in [0, 1], the part of the target that was left out as outliers.
    """

    per_clip: Tensor
    clipped: Tensor


class Objective(Protocol):
    """An objective holds the mathematics of a distillation; the Lightning module brings clips, teacher and student.

    Attributes:
        pooling: (t,h,w) of the windows by which the teacher's features are pooled for it.
    """

    pooling: Window

    def modules(self) -> dict[str, nn.Module]:
        """What it keeps in checkpoints or trains, under its names there."""

    @property
    def ready(self) -> bool:
        """Whether statistics need not be measured first."""

    def fit(self, statistics: ChannelStatistics) -> None:
        """Take the statistics of the teacher's features, measured once; raises ValueError if they are unusable."""

    def targets(self, features: Tensor, mask: Tensor) -> Any:
        """Features [B,T',h,w,C] of a teacher and bool [B,T'] of slots that count -> what `loss` compares with."""

    def loss(self, tokens: Tensor, target: Any) -> ClipLosses:
        """Student tokens [B,T',h,w,C] against targets."""

    def figures(self, tokens: Tensor, target: Any) -> dict[str, Tensor]:
        """What the run's log shows beside the loss: means over the batch."""

    def raw(self, tokens: Tensor) -> Tensor:
        """What student tokens [B,T',h,w,C] say of the teacher's pooled features, in their own space and grid."""
