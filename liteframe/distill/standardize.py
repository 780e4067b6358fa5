"""Standardized features for the loss, raw features for everyone else.

A few channels of large ViTs are a hundred times the rest; on raw features a mean squared error would see only them. The
student is therefore trained on standardized targets, and the way back is folded into its head when it is saved.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from liteframe.distill.statistics import FeatureStatistics, TargetStatistics


def equalizing_rotation(size: int) -> Tensor:
    """Float64 orthogonal [size,size]: Hadamard / sqrt(size), else a fixed random orthogonal matrix.

    A rotation with entries of equal size spreads any diagonal covariance evenly over the channels; a random one does so
    approximately.
    """
    matrix = hadamard(size)
    if matrix is not None:
        return matrix / size**0.5
    generator = torch.Generator().manual_seed(size)
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


def hadamard(size: int) -> Tensor | None:
    """Float64 matrix of +1 and -1 with H H^T = size I (Sylvester doubling of a Paley matrix), or None."""
    core, doublings = size, 0
    while core:
        seed = _paley(core)
        if seed is not None:
            for _ in range(doublings):
                seed = torch.cat([torch.cat([seed, seed], 1), torch.cat([seed, -seed], 1)])
            return seed
        if core % 2:
            return None
        core, doublings = core // 2, doublings + 1
    return None


def _paley(size: int) -> Tensor | None:
    """Order 1; q + 1 for a prime q = 3 mod 4 (Paley I); 2 (q + 1) for a prime q = 1 mod 4 (Paley II)."""
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if _is_prime(size - 1) and size % 4 == 0:
        q = size - 1
        skew = torch.zeros(size, size, dtype=torch.float64)
        skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1, -1, _jacobsthal(q)
        return skew + torch.eye(size, dtype=torch.float64)
    q = size // 2 - 1
    if size % 4 == 0 and _is_prime(q) and q % 4 == 1:
        conference = torch.zeros(q + 1, q + 1, dtype=torch.float64)
        conference[0, 1:], conference[1:, 0], conference[1:, 1:] = 1, 1, _jacobsthal(q)
        plus = torch.tensor([[1, 1], [1, -1]], dtype=torch.float64)
        minus = torch.tensor([[1, -1], [-1, -1]], dtype=torch.float64)
        return torch.kron(conference, plus) + torch.kron(torch.eye(q + 1, dtype=torch.float64), minus)
    return None


def _jacobsthal(q: int) -> Tensor:
    """[q,q] with entry (i,j) the quadratic character of i - j modulo q."""
    character = torch.full((q,), -1.0, dtype=torch.float64)
    character[torch.arange(1, q).square() % q] = 1
    character[0] = 0
    index = torch.arange(q)
    return character[(index[:, None] - index[None, :]) % q]


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


Standardization = Literal["channel", "phi_s", "none"]
# A channel (nearly) constant in the statistics keeps a scale of this part of the channels' median.
SMALLEST_SCALE = 1e-3


class Standardizer(nn.Module):
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

    def __init__(self, channels: int, kind: Standardization):
        super().__init__()
        if kind not in ("channel", "phi_s", "none"):
            raise ValueError(f"standardization is {kind!r}; choose channel, phi_s or none")
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
        rotation = equalizing_rotation(len(variances)) @ basis.T
        self.forward_map.copy_(rotation / phi)
        self.inverse_map.copy_(rotation.T * phi)

    def forward(self, raw: Tensor) -> Tensor:
        """Raw features [...,C] -> standardized [...,C], float32 (float64 stays)."""
        return self._apply_map(self._precise(raw) - self.mean, self.forward_map)

    def inverse(self, standardized: Tensor) -> Tensor:
        """Standardized [...,C] -> raw [...,C], float32 (float64 stays)."""
        return self._apply_map(self._precise(standardized), self.inverse_map) + self.mean

    def fold(self, head: nn.Linear) -> None:
        """Change a head that emits standardized features into one that emits raw features, in place."""
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
        """Change a head that emits raw features into one that emits standardized features, in place."""
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
