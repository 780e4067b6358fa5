"""Statistics of target features, summed in float64 so that the order of batches and the number of ranks do not matter.

Shapes: N tokens, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
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


class FeatureStatistics:
    """Running sums over tokens: mean and covariance of the channels, mean and spread of the tokens' norms.

    Args:
        channels: C.
        device: where the sums are kept.
        full: keep the whole covariance; without it only its diagonal, which is much cheaper.
        shared: all ranks measure together; False where one of them measures alone.
    """

    def __init__(self, channels: int, device: torch.device | str = "cpu", *, full: bool = False, shared: bool = True):
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        # A shift near the data keeps squares small where a channel's mean is large against its spread; all ranks use
        # the first one's.
        self._shift: Tensor | None = None
        self.full, self._shared = full, shared
        self._count, self._sum = zeros(1), zeros(channels)
        self._squares = zeros(channels, channels) if full else zeros(channels)
        self._norms = zeros(2)

    def update(self, tokens: Tensor) -> None:
        """Add tokens [N,C]."""
        tokens = tokens.to(torch.float64)
        if self._shift is None:
            shift = tokens.mean(0) if len(tokens) else torch.zeros_like(self._sum)
            self._shift = self._agreed(shift) if self._shared else shift
        centred = tokens - self._shift
        self._count += len(tokens)
        self._sum += centred.sum(0)
        self._squares += centred.T @ centred if self.full else centred.square().sum(0)
        norms = tokens.norm(dim=1)
        self._norms += torch.stack([norms.sum(), norms.square().sum()])

    def reduce(self) -> None:
        """Add the sums of all ranks; call once, on every rank, after at least one update on each."""
        if dist.is_available() and dist.is_initialized():
            for total in (self._count, self._sum, self._squares, self._norms):
                dist.all_reduce(total)

    @staticmethod
    def _agreed(shift: Tensor) -> Tensor:
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(shift, src=0)
        return shift

    @property
    def count(self) -> int:
        """Tokens seen."""
        return int(self._count.item())

    @property
    def mean(self) -> Tensor:
        """Float64 [C]."""
        return self._offset() + (0 if self._shift is None else self._shift)

    @property
    def covariance(self) -> Tensor:
        """Float64 [C,C], divided by the number of tokens.

        Raises:
            ValueError: the statistics were kept without `full`.
        """
        if not self.full:
            raise ValueError("only the diagonal of the covariance was kept; use FeatureStatistics(..., full=True)")
        offset = self._offset()
        return self._squares / self._count.clamp_min(1) - torch.outer(offset, offset)

    @property
    def std(self) -> Tensor:
        """Float64 [C]."""
        squares = self._squares.diagonal() if self.full else self._squares
        return (squares / self._count.clamp_min(1) - self._offset().square()).clamp_min(0).sqrt()

    @property
    def norm_mean_std(self) -> tuple[float, float]:
        """Mean and standard deviation of the tokens' L2 norms."""
        mean, square = (self._norms / self._count.clamp_min(1)).tolist()
        return mean, max(0.0, square - mean * mean) ** 0.5

    def _offset(self) -> Tensor:
        return self._sum / self._count.clamp_min(1)
