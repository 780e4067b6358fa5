"""Channel statistics of the targets, as they were measured when the cache was built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

# A channel (nearly) constant in the statistics is whitened with this part of the channels' median spread.
SMALLEST_SCALE = 1e-3


@dataclass(frozen=True)
class TargetStatistics:
    """Mean, spread and covariance of the channels of pooled features, and mean and spread of the tokens' norms.

    It offers what the target builder reads from running statistics, so it can stand in their place.

    Attributes:
        count: tokens.
        mean: float64 [C].
        std: float64 [C].
        covariance: float64 [C,C], divided by the number of tokens.
        norm_mean_std: of the tokens' L2 norms.
    """

    count: int
    mean: Tensor
    std: Tensor
    covariance: Tensor
    norm_mean_std: tuple[float, float]

    @classmethod
    def taken_from(cls, running: Any) -> TargetStatistics:
        """A frozen copy, on the CPU, of running statistics with the same attributes."""
        mean, std, covariance = (tensor.cpu().clone() for tensor in (running.mean, running.std, running.covariance))
        return cls(running.count, mean, std, covariance, running.norm_mean_std)

    @property
    def whitening(self) -> tuple[Tensor, Tensor]:
        """Mean and a positive scale of each channel, float32 [C]."""
        floor = max(SMALLEST_SCALE * float(self.std.median()), 1e-12)
        return self.mean.float(), self.std.clamp_min(floor).float()

    def to_bytes(self) -> bytes:
        """A safetensors file."""
        facts = self.mean.new_tensor([self.count, *self.norm_mean_std])
        return save({"mean": self.mean, "std": self.std, "covariance": self.covariance, "facts": facts})

    @classmethod
    def from_bytes(cls, data: bytes, channels: int) -> TargetStatistics:
        """What `to_bytes` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            tensors = load(data)
            mean, std, covariance, facts = (tensors[name] for name in ("mean", "std", "covariance", "facts"))
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"these are not the statistics of a target cache ({error})") from error
        shapes = [tuple(tensor.shape) for tensor in (mean, std, covariance, facts)]
        if shapes != [(channels,), (channels,), (channels, channels), (3,)]:
            raise ValueError(f"the statistics have shapes {shapes}, which does not fit {channels} channels")
        count, norm_mean, norm_std = facts.tolist()
        return cls(int(count), mean, std, covariance, (norm_mean, norm_std))
