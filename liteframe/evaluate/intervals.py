"""Accuracies with 95 % confidence intervals that know that questions about one video are not independent.

Wilson's interval, at the effective number of questions: count / design effect, where the design effect is the variance
of the accuracy between videos over the binomial one (Kish), at least 1. Where each video has one question, it is
Wilson's interval as it stands. Means of several accuracies combine their intervals by MOVER (Zou and Donner 2008).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

Z = 1.959963984540054  # 97.5 % point of the normal distribution
METHOD = "95 % Wilson interval at the effective number of questions (clusters: videos); means by MOVER"


@dataclass(frozen=True)
class Difference:
    """By how much one accuracy is above another on the same questions.

    Attributes:
        difference: of the two, in [-1, 1].
        low: lower end of the 95 % interval.
        high: upper end.
        standard_error: of the difference, questions paired, videos what is independent; NaN for a single video.
        count: number of questions.
        videos: number of clusters among them.
    """

    difference: float
    low: float
    high: float
    standard_error: float
    count: int
    videos: int


@dataclass(frozen=True)
class Share:
    """An accuracy in [0, 1] with its interval.

    Attributes:
        accuracy: right over count.
        low: lower end of the 95 % interval.
        high: upper end.
        count: number of questions.
        videos: number of clusters among them.
    """

    accuracy: float
    low: float
    high: float
    count: int
    videos: int

    @property
    def standard_error(self) -> float:
        """The binomial one, of questions that are independent."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.count)


def share(right: Sequence[bool], clusters: Sequence[Hashable]) -> Share:
    """Accuracy of questions, each of which belongs to a cluster (its video).

    Raises:
        ValueError: no questions, or not one cluster for each.
    """
    if not right or len(right) != len(clusters):
        raise ValueError(f"{len(right)} results in {len(clusters)} clusters; one cluster a result, at least one")
    n, p = len(right), sum(right) / len(right)
    deviations: dict[Hashable, float] = defaultdict(float)
    for good, cluster in zip(right, clusters, strict=True):
        deviations[cluster] += good - p
    videos = len(deviations)
    effective: float = n
    if videos < n:
        if 0 < p < 1 and videos > 1:
            between = sum(d * d for d in deviations.values()) / n**2 * videos / (videos - 1)
            effective = n / max(1.0, between / (p * (1 - p) / n))
        else:  # nothing to tell apart: as if the questions of a video were one
            effective = videos
    low, high = wilson(p, effective)
    return Share(p, low, high, n, videos)


def wilson(p: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share `p` of `n` trials; `n` may be a fraction."""
    center = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return max(0.0, min(p, center - half)), min(1.0, max(p, center + half))


def mean_share(shares: Sequence[Share]) -> Share:
    """The unweighted mean of independent accuracies.

    Raises:
        ValueError: there are none.
    """
    if not shares:
        raise ValueError("no accuracies to average")
    k = len(shares)
    mean = sum(s.accuracy for s in shares) / k
    below = math.sqrt(sum((s.accuracy - s.low) ** 2 for s in shares)) / k
    above = math.sqrt(sum((s.high - s.accuracy) ** 2 for s in shares)) / k
    count, videos = sum(s.count for s in shares), sum(s.videos for s in shares)
    return Share(mean, max(0.0, mean - below), min(1.0, mean + above), count, videos)


def paired_difference(right: Sequence[bool], other: Sequence[bool], clusters: Sequence[Hashable]) -> Difference:
    """Accuracy less that of another system, question by question; the interval is normal, its error that of clusters.

    Raises:
        ValueError: no questions, or not one result of each and one cluster a question.
    """
    if not right or not len(right) == len(other) == len(clusters):
        raise ValueError(f"{len(right)} and {len(other)} results in {len(clusters)} clusters cannot be paired")
    n = len(right)
    mean = (sum(right) - sum(other)) / n
    deviations: dict[Hashable, float] = defaultdict(float)
    for ours, theirs, cluster in zip(right, other, clusters, strict=True):
        deviations[cluster] += ours - theirs - mean
    videos = len(deviations)
    squares = sum(d * d for d in deviations.values())
    error = math.sqrt(squares * videos / (videos - 1)) / n if videos > 1 else math.nan
    return Difference(mean, mean - Z * error, mean + Z * error, error, n, videos)
