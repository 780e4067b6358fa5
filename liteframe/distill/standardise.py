"""Standardised features for the loss, raw features for everyone else.

A few channels of large ViTs are a hundred times the rest; on raw features a mean squared error would see only them. The
student is therefore trained on standardised targets, and the way back is folded into its head when it is saved.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from liteframe.data.cache.statistics import TargetStatistics
from liteframe.distill.hadamard import equalising_rotation
from liteframe.distill.statistics import FeatureStatistics

Standardisation = Literal["channel", "phi_s", "none"]
# A channel (nearly) constant in the statistics keeps a scale of this part of the channels' median.
SMALLEST_SCALE = 1e-3


class Standardiser(nn.Module):
    """An affine map of features [...,C] with an exact inverse, frozen once `fit` has been called.

    "channel": zero mean and unit variance for every channel. "phi_s": PHI-S (arXiv 2410.01680): a rotation and one
    scale that give every channel unit variance and keep angles and relative distances. "none": the identity.

    Args:
        channels: C.
        kind: see above.
    """

    mean: Tensor
    forward_map: Tensor
    inverse_map: Tensor

    def __init__(self, channels: int, kind: Standardisation):
        super().__init__()
        if kind not in ("channel", "phi_s", "none"):
            raise ValueError(f"standardisation is {kind!r}; choose channel, phi_s or none")
        self.kind = kind
        shape = (channels, channels) if kind == "phi_s" else (channels,)
        self.register_buffer("mean", torch.zeros(channels))
        # Matrices for phi_s, their diagonals otherwise.
        self.register_buffer("forward_map", torch.eye(channels) if kind == "phi_s" else torch.ones(shape))
        self.register_buffer("inverse_map", torch.eye(channels) if kind == "phi_s" else torch.ones(shape))

    def fit(self, statistics: FeatureStatistics | TargetStatistics) -> None:
        """Take mean and scale from the statistics."""
        if self.kind == "none":
            return
        self.mean.copy_(statistics.mean)
        if self.kind == "channel":
            std = statistics.std
            scale = std.clamp_min(max(SMALLEST_SCALE * float(std.median()), 1e-12))
            self.forward_map.copy_(1 / scale)
            self.inverse_map.copy_(scale)
            return
        variances, basis = torch.linalg.eigh(statistics.covariance.cpu())
        phi = variances.clamp_min(0).mean().sqrt().clamp_min(1e-12)
        rotation = equalising_rotation(len(variances)) @ basis.T
        self.forward_map.copy_(rotation / phi)
        self.inverse_map.copy_(rotation.T * phi)

    def forward(self, raw: Tensor) -> Tensor:
        """Raw features [...,C] -> standardised [...,C], float32 (float64 stays)."""
        return self._apply_map(self._precise(raw) - self.mean, self.forward_map)

    def inverse(self, standardised: Tensor) -> Tensor:
        """Standardised [...,C] -> raw [...,C], float32 (float64 stays)."""
        return self._apply_map(self._precise(standardised), self.inverse_map) + self.mean

    def fold(self, head: nn.Linear) -> None:
        """Change a head that emits standardised features into one that emits raw features, in place."""
        inverse, mean = self.inverse_map.double(), self.mean.double()
        weight, bias = head.weight.double(), head.bias.double()
        with torch.no_grad():
            if self.kind == "phi_s":
                head.weight.copy_(inverse @ weight)
                head.bias.copy_(inverse @ bias + mean)
            else:
                head.weight.copy_(inverse[:, None] * weight)
                head.bias.copy_(inverse * bias + mean)

    def unfold(self, head: nn.Linear) -> None:
        """Change a head that emits raw features into one that emits standardised features, in place."""
        forward, mean = self.forward_map.double(), self.mean.double()
        weight, bias = head.weight.double(), head.bias.double() - mean
        with torch.no_grad():
            if self.kind == "phi_s":
                head.weight.copy_(forward @ weight)
                head.bias.copy_(forward @ bias)
            else:
                head.weight.copy_(forward[:, None] * weight)
                head.bias.copy_(forward * bias)

    def _apply_map(self, features: Tensor, mapping: Tensor) -> Tensor:
        mapping = mapping.to(features.dtype)
        # Autocast would round the rotation to bf16.
        with torch.autocast(features.device.type, enabled=False):
            return features @ mapping.T if self.kind == "phi_s" else features * mapping

    @staticmethod
    def _precise(features: Tensor) -> Tensor:
        return features if features.dtype == torch.float64 else features.float()
