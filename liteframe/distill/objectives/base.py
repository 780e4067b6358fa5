"""What a student is trained for: targets out of the teacher's features, and a loss between them and its tokens.

Shapes: B clips, T' slots, (h,w) pooled grid, C teacher channels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from liteframe.distill.statistics import ChannelStatistics
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.reduce.base import Window
from liteframe.reduce.pooled_teacher import Pooled


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
        statistics_window: (t,h,w) of the windows that the channel statistics are of.
        needs_log_weights: whether it takes the weights of pooled features, see Pooled.
        figure_names: what `figures` tells.
    """

    pooling: Window
    statistics_window: Window
    needs_log_weights: bool
    figure_names: Sequence[str]

    def modules(self) -> dict[str, nn.Module]:
        """What it keeps in checkpoints or trains, under its names there."""

    @property
    def ready(self) -> bool:
        """Whether statistics need not be measured first."""

    def fit(self, statistics: ChannelStatistics) -> None:
        """Take the statistics of the teacher's features, measured once; raises ValueError if they are unusable."""

    def student_tokens(self, student: LiteFrameEncoder, video: Tensor) -> Any:
        """What it compares of a student: tokens [B,T',h,w,C] in the space of the loss, or several of them."""

    def targets(self, features: Tensor, mask: Tensor, log_weights: Tensor | None = None) -> Any:
        """Features [B,T',h,w,C] of a teacher, bool [B,T'] of slots that count, and the features' weights [B,T',h,w]
        where it needs them -> what `loss` compares with.
        """

    def loss(self, tokens: Any, target: Any) -> ClipLosses:
        """Tokens of `student_tokens` against targets."""

    def figures(self, tokens: Any, target: Any) -> dict[str, Tensor]:
        """What the run's log shows beside the loss: means over the batch."""

    def idle(self, tokens: Any) -> Tensor:
        """A zero with gradients for all that is trained."""

    def main(self, tokens: Any) -> Tensor:
        """Those of the student's own compression, [B,T',h,w,C]."""

    def own(self, pooled: Pooled) -> Pooled:
        """The teacher's features as the channel statistics and the panel see them."""

    def raw(self, tokens: Any) -> Tensor:
        """What tokens say of `own` features, in their space and grid, [B,T',h,w,C]."""

    def compared(self, tokens: Any, pooled: Pooled) -> dict[str, tuple[Tensor, Pooled]]:
        """What is measured on held-out clips: tokens in the teacher's space and what they should be; "" is `own`."""
