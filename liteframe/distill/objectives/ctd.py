"""Compressed token distillation (CTD, arXiv 2605.17260): tokens against clipped, standardized WAP targets.

Shapes: B clips, T' slots, (h,w) pooled grid, C teacher channels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from liteframe.distill.losses import LossName, clip_losses, drop_large_losses, mean_cosine, token_losses
from liteframe.distill.objectives.base import ClipLosses
from liteframe.distill.statistics import ChannelStatistics
from liteframe.distill.targets import TargetNormalizer, TargetSettings
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.reduce.base import Window
from liteframe.reduce.pooled_teacher import Pooled


class CompressedTokens:
    """The objective of CTD.

    Args:
        channels: C.
        settings: how targets are clipped and standardized.
        loss_name: between a token and its target.
        window: (t,kh,kw) of frames and patches that a token stands for.

    Attributes:
        parts: features of one width that a token's channels are made of: the last block's and those of deepstack.
    """

    needs_log_weights = False
    parts = 1
    figure_names: Sequence[str] = ("cosine",)

    def __init__(self, channels: int, settings: TargetSettings, loss_name: LossName, window: Window = (4, 2, 2)):
        self.settings, self.loss_name, self.pooling = settings, loss_name, window
        self.normalizer = TargetNormalizer(channels, settings)

    def modules(self) -> dict[str, nn.Module]:
        """The frozen channel statistics, under the name "target" in checkpoints."""
        return {"target": self.normalizer}

    @property
    def ready(self) -> bool:
        """Whether the statistics are there."""
        return bool(self.normalizer.ready)

    def fit(self, statistics: ChannelStatistics) -> None:
        """Freeze the statistics; raises ValueError if they are unusable."""
        self.normalizer.fit(statistics)

    @property
    def statistics_window(self) -> Window:
        """That of the features."""
        return self.pooling

    def student_tokens(self, student: LiteFrameEncoder, video: Tensor) -> Any:
        """[B,T,3,H,W] -> [B,T',h,w,C]."""
        return student(video)

    def targets(self, features: Tensor, mask: Tensor, log_weights: Tensor | None = None) -> Any:
        """Raw WAP features [B,T',h,w,C] and bool [B,T'] of slots that count -> Target."""
        return self.normalizer(features, mask)

    def decoded(self, tokens: Tensor) -> Tensor:
        """What is compared with targets: the tokens themselves, in the standardized space."""
        return tokens

    def loss(self, tokens: Any, target: Any) -> ClipLosses:
        """Tokens [B,T',h,w,C] in the standardized space against a target."""
        losses = token_losses(self.decoded(tokens), target.values, self.loss_name, self.parts)  # [B,T',h,w]
        weight, clipped = target.weight, target.clipped
        if self.settings.clipping == "loss_clip":
            weight = drop_large_losses(losses, weight, self.settings.sigmas)
            clipped = 1 - weight.sum() / target.weight.sum().clamp_min(1)
        return ClipLosses(clip_losses(losses, weight), clipped)

    @torch.no_grad()
    def figures(self, tokens: Any, target: Any) -> dict[str, Tensor]:
        """Cosine of the tokens that count, in the teacher's raw space, neither clipped nor standardized."""
        similar = mean_cosine(self.raw(tokens), target.raw, self.parts)  # [B,T',h,w]
        return {"cosine": clip_losses(similar, target.weight).mean()}

    def idle(self, tokens: Any) -> Tensor:
        """A zero with gradients for all that is trained."""
        return self.decoded(tokens).sum() * 0.0

    def main(self, tokens: Any) -> Tensor:
        """The tokens themselves."""
        return tokens

    def own(self, pooled: Pooled) -> Pooled:
        """The features themselves."""
        return pooled

    def raw(self, tokens: Any) -> Tensor:
        """What tokens say of the teacher's features, in their raw space, float32."""
        return self.normalizer.standardizer.inverse(self.decoded(self.main(tokens)))

    def compared(self, tokens: Any, pooled: Pooled) -> dict[str, tuple[Tensor, Pooled]]:
        """Raw tokens and the features."""
        return {"": (self.raw(tokens), pooled)}
