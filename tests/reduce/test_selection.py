"""Ties, density peaks and segments against the specification (reducers_ablations.md 2 and 5), and against loops."""

import math

import pytest
import torch

from liteframe.reduce.selection import bottom, cosine, density_peaks, first_largest, group_sums, segments, top


def test_among_equals_the_first_comes_first():
    values = torch.tensor([[1.0, 3, 2, 3, 1, 3], [0, 0, 0, 0, 0, 0]])
    assert top(values, 4).tolist() == [[1, 3, 5, 2], [0, 1, 2, 3]]
    assert bottom(values, 3).tolist() == [[0, 4, 2], [0, 1, 2]]
    assert first_largest(values).tolist() == [1, 0]
    assert top(values.repeat(1, 50)[0], 60).tolist() == [6 * i + j for i in range(50) for j in (1, 3, 5)][:60]


def test_density_peaks_of_the_specification():
    x = torch.tensor([0, 0.1, 0.25, 1, 1.1, 3], dtype=torch.float64)[:, None]
    clusters = density_peaks(x, 3, 3)
    assert clusters.centers.tolist() == [1, 3, 5]
    assert clusters.label.tolist() == [0, 0, 0, 1, 1, 2]
    assert clusters.sizes.tolist() == [3, 2, 1]
    assert clusters.means(x)[:, 0].tolist() == pytest.approx([0.116667, 1.05, 3], abs=1e-6)


def peaks_by_loops(x, count, neighbors):
    n, scale = len(x), math.sqrt(len(x[0]))
    distance = [[math.dist(a, b) / scale for b in x] for a in x]
    density = [math.exp(-sum(d * d for d in sorted(row)[:neighbors]) / neighbors) for row in distance]
    score = []
    for i in range(n):
        denser = [j for j in range(n) if density[j] > density[i] or (density[j] == density[i] and j < i)]
        score.append(density[i] * (min(distance[i][j] for j in denser) if denser else max(map(max, distance))))
    centers = sorted(range(n), key=lambda i: (-score[i], i))[:count]
    nearest = [min(range(count), key=lambda c: (distance[i][centers[c]], c)) for i in range(n)]
    return centers, [centers.index(i) if i in centers else nearest[i] for i in range(n)]


@pytest.mark.parametrize(("n", "count", "neighbors"), [(30, 5, 4), (12, 12, 7), (9, 1, 1), (1, 1, 4)])
def test_density_peaks_against_loops(n, count, neighbors):
    x = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[n // 2] = x[0]  # equal ones: distance 0, each its own center if both are chosen
    clusters = density_peaks(x, count, min(neighbors, n))
    assert (clusters.centers.tolist(), clusters.label.tolist()) == peaks_by_loops(x.tolist(), count, min(neighbors, n))


def test_sums_of_groups():
    x = torch.randn(20, 3, dtype=torch.float64)
    label = torch.arange(20) % 3
    expected = torch.zeros(4, 3, dtype=torch.float64).index_add_(0, label, x)
    torch.testing.assert_close(group_sums(x, label, 4), expected)


def test_segments():
    angles = torch.tensor([0, 0.1, 0.1, 1.2, 1.3, 1.31], dtype=torch.float64)
    glob = torch.stack([angles.cos(), angles.sin()], 1)
    assert segments(glob, 1, 0.9) == [range(0, 3), range(3, 6)]
    assert segments(glob, 1, -1) == [range(0, 6)]
    assert segments(glob, 3, 0.5) == [range(0, 1), range(1, 3), range(3, 6)]  # of two equal steps the earlier
    assert segments(glob, 9, 0.5) == [range(i, i + 1) for i in range(6)]
    assert segments(glob[:1], 8, 0.9) == [range(0, 1)]


def test_a_zero_vector_is_like_nothing():
    assert cosine(torch.zeros(2, 3), torch.randn(2, 3)).tolist() == [0, 0]
