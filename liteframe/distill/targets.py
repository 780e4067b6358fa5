"""Pooled teacher features -> clipped and standardized targets (paper: CTD; design, section 5; methods 18.4).

A few channels of large ViTs are a hundred times the rest; on raw features a mean squared error would see only them. The
student is therefore trained on standardized targets, and the way back is folded into its head when it is saved.

Shapes: B clips, T' slots of t frames, (h,w) pooled grid, C teacher channels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from liteframe.distill.statistics import ChannelStatistics
from liteframe.files import write_atomically
from liteframe.reduce.wap import SoftmaxOver

Clipping = Literal["channel_clamp", "token_mask", "loss_clip", "none"]
Standardization = Literal["channel", "none"]


@dataclass
class TargetSettings:
    """How targets are made.

    Attributes:
        scope: of WAP's softmax: "block" (members of a block compete) or "frame".
        clipping: against outliers. "channel_clamp" clamps each channel to mean +- sigmas std; "token_mask" drops tokens
            whose norm exceeds mean + sigmas std of the norms; "loss_clip" drops tokens whose loss exceeds mean + sigmas
            std of the batch; "none".
        sigmas: the 3 in "3-sigma clipping".
        standardize: "channel" (zero mean and unit variance for every channel) or "none".
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


class Standardizer(nn.Module):
    """A scale and an offset for each channel of features [...,C], with an exact inverse, frozen once `fit` was called.

    Args:
        channels: C.
        kind: "channel": zero mean and unit variance for every channel. "none": the identity.
    """

    mean: Tensor
    forward_map: Tensor
    inverse_map: Tensor

    def __init__(self, channels: int, kind: Standardization):
        super().__init__()
        if kind not in ("channel", "none"):
            raise ValueError(f"standardization is {kind!r}; choose channel or none")
        self.kind = kind
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("forward_map", torch.ones(channels))
        self.register_buffer("inverse_map", torch.ones(channels))

    def fit(self, statistics: ChannelStatistics) -> None:
        """Take mean and scale from the statistics."""
        if self.kind == "channel":
            self.mean.copy_(statistics.mean)
            self.forward_map.copy_(1 / statistics.scale)
            self.inverse_map.copy_(statistics.scale)

    def forward(self, raw: Tensor) -> Tensor:
        """Raw features [...,C] -> standardized [...,C], float32 (float64 stays)."""
        return (_precise(raw) - self.mean) * self.forward_map

    def inverse(self, standardized: Tensor) -> Tensor:
        """Standardized [...,C] -> raw [...,C], float32 (float64 stays)."""
        return _precise(standardized) * self.inverse_map + self.mean

    @torch.no_grad()
    def fold(self, head: nn.Linear) -> None:
        """Change a head that emits standardized features into one that emits raw features, in place."""
        inverse = self.inverse_map.double()
        head.weight.copy_(inverse[:, None] * head.weight.double())
        head.bias.copy_(inverse * head.bias.double() + self.mean.double())

    @torch.no_grad()
    def unfold(self, head: nn.Linear) -> None:
        """Change a head that emits raw features into one that emits standardized features, in place."""
        forward = self.forward_map.double()
        head.weight.copy_(forward[:, None] * head.weight.double())
        head.bias.copy_(forward * (head.bias.double() - self.mean.double()))


class Target(NamedTuple):
    """What the student is compared with.

    Attributes:
        values: [B,T',h,w,C], clipped and standardized.
        weight: [B,T',h,w]; 0 where a token does not count.
        clipped: scalar in [0, 1], the part of elements (channel_clamp) or tokens (token_mask) that was clipped.
        raw: [B,T',h,w,C], what it was made from.
    """

    values: Tensor
    weight: Tensor
    clipped: Tensor
    raw: Tensor


class TargetNormalizer(nn.Module):
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

    def fit(self, statistics: ChannelStatistics) -> None:
        """Freeze the statistics.

        Raises:
            ValueError: there are no tokens, or they are not finite.
        """
        if not statistics.usable:
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

    def forward(self, raw: Tensor, slots: Tensor) -> Target:
        """Pooled features [B,T',h,w,C] (float32) and bool [B,T'] of slots that count -> Target."""
        weight = slots[:, :, None, None].expand(raw.shape[:-1]).to(raw.dtype)  # [B,T',h,w]
        values, clipped = raw, raw.new_zeros(())
        if self.settings.clipping == "channel_clamp":
            reach = self.settings.sigmas * self.std
            values = torch.minimum(torch.maximum(raw, self.mean - reach), self.mean + reach)
            clipped = ((values != raw).float().mean(-1) * weight).sum() / weight.sum().clamp_min(1)
        elif self.settings.clipping == "token_mask":
            kept = weight * (raw.norm(dim=-1) <= self.norm_limit)
            clipped = 1 - kept.sum() / weight.sum().clamp_min(1)
            weight = kept
        return Target(self.standardizer(values), weight, clipped, raw)

    def save(self, tokens: int, folder: Path) -> None:
        """Write what has been frozen, and the number of tokens behind it, into a run's folder."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_atomically(folder / "target_statistics.safetensors", save(tensors, {"tokens": str(tokens)}))


def _precise(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()
