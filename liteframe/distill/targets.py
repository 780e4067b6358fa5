"""Teacher features -> WAP -> clipped and standardized targets (paper: CTD; design, section 5; methods 18.4).

Shapes: B clips, T' slots of t frames, (h,w) pooled grid, C teacher channels.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from liteframe.distill.standardize import Standardization, Standardizer
from liteframe.distill.statistics import FeatureStatistics, TargetStatistics
from liteframe.files import write_atomically
from liteframe.reduce.wap import SoftmaxOver

Clipping = Literal["channel_clamp", "token_mask", "loss_clip", "none"]


@dataclass
class TargetSettings:
    """How targets are made.

    Attributes:
        scope: of WAP's softmax: "block" (members of a block compete) or "frame".
        clipping: against outliers. "channel_clamp" clamps each channel to mean +- sigmas std; "token_mask" drops tokens
            whose norm exceeds mean + sigmas std of the norms; "loss_clip" drops tokens whose loss exceeds mean + sigmas
            std of the batch; "none".
        sigmas: the 3 in "3-sigma clipping".
        standardize: "channel", "phi_s" or "none".
        statistics_clips: clips that the frozen statistics are measured on, over all ranks.
    """

    scope: SoftmaxOver = "block"
    clipping: Clipping = "channel_clamp"
    sigmas: float = 3.0
    standardize: Standardization = "channel"
    statistics_clips: int = 256

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if self.sigmas <= 0:
            raise ValueError(f"target.sigmas is {self.sigmas}; it must be positive")
        if self.statistics_clips < 1:
            raise ValueError(f"target.statistics_clips is {self.statistics_clips}; it must be at least 1")


class Target(NamedTuple):
    """What the student is compared with.

    Attributes:
        values: [B,T',h,w,C], clipped and standardized.
        weight: [B,T',h,w]; 0 where a token does not count.
        clipped: scalar in [0, 1], the part of elements (channel_clamp) or tokens (token_mask) that was clipped.
    """

    values: Tensor
    weight: Tensor
    clipped: Tensor


class TargetBuilder(nn.Module):
    """Clips and standardizes pooled features with statistics that are measured once and then frozen.

    The statistics are buffers, so they travel in checkpoints.

    Args:
        channels: C.
        settings: how.
    """

    mean: Tensor
    std: Tensor
    norm_limit: Tensor
    ready: Tensor

    def __init__(self, channels: int, settings: TargetSettings):
        super().__init__()
        self.settings = settings
        self.standardizer = Standardizer(channels, settings.standardize)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.zeros(channels))
        self.register_buffer("norm_limit", torch.zeros(()))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

    def fit(self, statistics: FeatureStatistics | TargetStatistics) -> None:
        """Freeze the statistics.

        Raises:
            ValueError: there are no tokens, or they are not finite.
        """
        if statistics.count < 2 or not torch.isfinite(statistics.mean).all():
            raise ValueError(
                f"target statistics are unusable: {statistics.count} tokens, "
                f"{'finite' if torch.isfinite(statistics.mean).all() else 'not finite'}; "
                "check the teacher's weights and the videos (liteframe scan)"
            )
        self.mean.copy_(statistics.mean)
        self.std.copy_(statistics.std)
        mean, std = statistics.norm_mean_std
        self.norm_limit.fill_(mean + self.settings.sigmas * std)
        self.standardizer.fit(statistics)
        self.ready.fill_(True)

    def forward(self, pooled: Tensor, slot_mask: Tensor) -> Target:
        """Pooled features [B,T',h,w,C] (float32) and bool [B,T'] -> Target."""
        weight = slot_mask[:, :, None, None].expand(pooled.shape[:-1]).to(pooled.dtype)
        clipped = pooled.new_zeros(())
        if self.settings.clipping == "channel_clamp":
            reach = self.settings.sigmas * self.std
            bounded = torch.minimum(torch.maximum(pooled, self.mean - reach), self.mean + reach)
            clipped = ((bounded != pooled).float().mean(-1) * weight).sum() / weight.sum().clamp_min(1)
            pooled = bounded
        elif self.settings.clipping == "token_mask":
            kept = weight * (pooled.norm(dim=-1) <= self.norm_limit)
            clipped = 1 - kept.sum() / weight.sum().clamp_min(1)
            weight = kept
        return Target(self.standardizer(pooled), weight, clipped)


@torch.no_grad()
def measure_statistics(
    tokens: Iterable[Tensor], channels: int, device: torch.device, *, full: bool
) -> FeatureStatistics:
    """Statistics of features over all processes; each brings batches [tokens,C] of its own, also empty ones.

    Args:
        tokens: raw pooled features.
        channels: C.
        device: where they are.
        full: measure the covariance too.
    """
    statistics = FeatureStatistics(channels, device, full=full)
    for batch in tokens:
        statistics.update(batch)
    statistics.reduce()
    return statistics


def save_statistics(target: TargetBuilder, tokens: int, folder: Path) -> None:
    """Write what a fitted target has frozen, and the number of tokens behind it, into a run's folder."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in target.state_dict().items()}
    write_atomically(folder / "target_statistics.safetensors", save(tensors, {"tokens": str(tokens)}))
