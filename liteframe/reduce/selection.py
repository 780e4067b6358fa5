"""What several reducers choose by (reducers_ablations.md 2): stable top-k, density peaks, segments of a video.

Nothing here is random. Among equals the first wins, so that every machine chooses the same tokens; the authors' code
leaves ties open, or breaks them by noise. Shapes: F frames, N tokens, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def unit(x: Tensor) -> Tensor:
    """Vectors [...,C] of length one; a zero vector stays one, and its cosine to anything is 0."""
    return x / (x.norm(dim=-1, keepdim=True) + 1e-12)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of vectors [...,C], pair by pair -> [...]."""
    return (unit(a) * unit(b)).sum(-1)


def top(values: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest of the last dimension, the largest first and among equals the first first."""
    return values.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def newest_top(values: Tensor, count: int) -> list[int]:
    """Indices of the `count` largest of values [K], ascending; of equals the last."""
    return sorted((len(values) - 1 - top(values.flip(0), count)).tolist())


def bottom(values: Tensor, count: int) -> Tensor:
    """Indices of the `count` smallest of the last dimension, the smallest first and among equals the first first."""
    return values.sort(dim=-1, stable=True).indices[..., :count]


def first_largest(values: Tensor) -> Tensor:
    """Index of the maximum along the last dimension, the first of equals [...,N] -> int64 [...]."""
    places = torch.arange(values.shape[-1], device=values.device)
    is_largest = values == values.amax(-1, keepdim=True)
    return torch.where(is_largest, places, values.shape[-1]).amin(-1)


class Clusters(NamedTuple):
    """Tokens in groups around centers.

    Attributes:
        centers: int64 [m], which tokens are centers, the best-scored first.
        label: int64 [N], the number of each token's center in that order.
    """

    centers: Tensor
    label: Tensor

    def means(self, x: Tensor) -> Tensor:
        """Mean of each cluster's members, the center among them: [N,C] -> [m,C]."""
        return group_sums(x, self.label, len(self.centers)) / self.sizes[:, None].to(x)

    @property
    def sizes(self) -> Tensor:
        """Members of each cluster, int64 [m]."""
        return self.label.bincount(minlength=len(self.centers))


def group_sums(x: Tensor, label: Tensor, groups: int) -> Tensor:
    """Sum of the rows of each label: [N,C], int64 [N] -> [groups,C]; the same bits in every call, on a GPU too."""
    member = label == torch.arange(groups, device=x.device)[:, None]  # [groups,N]
    return member.to(x.dtype) @ x


def density_peaks(x: Tensor, count: int, neighbors: int) -> Clusters:
    """DPC-KNN: centers are dense and far from anything denser (Rodriguez and Laio 2014; reducers_ablations.md 2.2).

    Args:
        x: [N,C].
        count: centers, m <= N.
        neighbors: k, whose distances make a token's density, its own 0 among them.
    """
    distance = distances(x) / x.shape[1] ** 0.5  # [N,N]
    nearest = distance.sort(dim=1).values[:, :neighbors]  # [N,k]
    density = (-nearest.square().mean(1)).exp()  # [N]
    first = torch.arange(len(x), device=x.device)
    denser = (density > density[:, None]) | (
        (density == density[:, None]) & (first < first[:, None])
    )  # [N,N], j than i
    to_denser = torch.where(denser, distance, torch.inf).amin(1)
    to_denser = torch.where(denser.any(1), to_denser, distance.max())
    centers = top(density * to_denser, count)  # [m]
    label = first_largest(-distance[:, centers])  # [N]
    label[centers] = torch.arange(len(centers), device=x.device)
    return Clusters(centers, label)


def distances(x: Tensor) -> Tensor:
    """Euclidean distances between the rows of [N,C] -> float64 [N,N], float32 values, exactly 0 between equal rows."""
    x = x.double()  # products in float32 lose what small distances consist of
    products = x @ x.T
    squares = products.diagonal()[:, None] + products.diagonal()
    between = squares - 2 * products
    # What products round in one row and not in its equal is rounded away, lest it decide which of the two comes first.
    return torch.where(between > 1e-13 * squares, between, 0).sqrt().float().double()


def segments(glob: Tensor, count: int, threshold: float) -> list[range]:
    """DySeg: cut a video between frames that differ (FastVID, arXiv 2503.11187; reducers_ablations.md 2.3).

    Args:
        glob: [F,C], a vector a frame.
        count: segments at least, c; min(c,F) where there are fewer frames.
        threshold: cosine below which neighbors are always cut apart.

    Returns:
        The frames of each segment, in order.
    """
    likeness = cosine(glob[:-1], glob[1:])  # [F-1]
    cut = likeness < threshold
    cut[bottom(likeness, min(count, len(glob)) - 1)] = True
    ends = [*(cut.nonzero().flatten() + 1).tolist(), len(glob)]
    return [range(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
