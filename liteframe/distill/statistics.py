"""Statistics of target features, summed in float64 so that the order of batches and the number of ranks do not matter.

Shapes: N tokens, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

# A channel (nearly) constant in the statistics keeps a scale of this part of the channels' median.
SMALLEST_SCALE = 1e-3


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and spread of the channels of pooled features, and of the tokens' norms.

    Attributes:
        count: tokens.
        mean: float64 [C].
        std: float64 [C].
        norm_mean_std: of the tokens' L2 norms.
    """

    count: int
    mean: Tensor
    std: Tensor
    norm_mean_std: tuple[float, float]

    @property
    def usable(self) -> bool:
        """Whether there were tokens, and finite ones."""
        return self.count >= 2 and bool(torch.isfinite(self.mean).all())

    @property
    def scale(self) -> Tensor:
        """What a channel is divided by when it is standardized: its spread, kept away from 0; float64 [C]."""
        return self.std.clamp_min(max(SMALLEST_SCALE * float(self.std.median()), 1e-12))

    def to_bytes(self) -> bytes:
        """Content of statistics.safetensors, which `from_bytes` reads."""
        facts = self.mean.new_tensor([self.count, *self.norm_mean_std])
        return save({"mean": self.mean, "std": self.std, "facts": facts})

    @classmethod
    def from_bytes(cls, data: bytes, channels: int) -> ChannelStatistics:
        """What `to_bytes` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            tensors = load(data)
            mean, std, facts = (tensors[name] for name in ("mean", "std", "facts"))
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"these are not the statistics of a target cache ({error})") from error
        shapes = [tuple(tensor.shape) for tensor in (mean, std, facts)]
        if shapes != [(channels,), (channels,), (3,)]:
            raise ValueError(f"the statistics have shapes {shapes}, which does not fit {channels} channels")
        count, norm_mean, norm_std = facts.tolist()
        return cls(int(count), mean, std, (norm_mean, norm_std))


class RunningStatistics:
    """Sums over tokens that `freeze` turns into ChannelStatistics.

    Args:
        channels: C.
        device: where the sums are kept.
        shared: all ranks measure together; False where one of them measures alone.
    """

    def __init__(self, channels: int, device: torch.device | str = "cpu", *, shared: bool = True):
        # A shift near the data keeps squares small where a channel's mean is large against its spread; all ranks use
        # the first one's.
        self._shift: Tensor | None = None
        self._shared = shared
        self._count, self._sum, self._squares, self._norms = (
            torch.zeros(size, dtype=torch.float64, device=device) for size in (1, channels, channels, 2)
        )

    def update(self, tokens: Tensor) -> None:
        """Add tokens [N,C]."""
        tokens = tokens.to(torch.float64)
        if self._shift is None:
            shift = tokens.mean(0) if len(tokens) else torch.zeros_like(self._sum)
            self._shift = self._agreed(shift) if self._shared else shift
        centered = tokens - self._shift
        self._count += len(tokens)
        self._sum += centered.sum(0)
        self._squares += centered.square().sum(0)
        norms = tokens.norm(dim=1)
        self._norms += torch.stack([norms.sum(), norms.square().sum()])

    def freeze(self) -> ChannelStatistics:
        """What has been measured, on the CPU; over all ranks where they share, and then each must call it, once."""
        if self._shared and dist.is_available() and dist.is_initialized():
            for total in (self._count, self._sum, self._squares, self._norms):
                dist.all_reduce(total)
        count = self._count.clamp_min(1)
        offset = self._sum / count
        mean = offset if self._shift is None else offset + self._shift
        std = (self._squares / count - offset.square()).clamp_min(0).sqrt()
        norm, square = (self._norms / count).tolist()
        spread = max(0.0, square - norm * norm) ** 0.5
        return ChannelStatistics(int(self._count.item()), mean.cpu(), std.cpu(), (norm, spread))

    @staticmethod
    def _agreed(shift: Tensor) -> Tensor:
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(shift, src=0)
        return shift
