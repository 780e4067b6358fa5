"""Batches of conversations of similar length, so that no rank and no row of a batch waits for a much longer one."""

from collections.abc import Callable
from typing import Any

import numpy as np

from liteframe.data.sampler import ClipStream, Key

# Global micro-batches that are sorted among each other: more groups better, fewer mixes better.
WINDOW = 16


class GroupedStream(ClipStream):
    """A ClipStream whose neighbours are about as long as each other.

    The epoch's random order is cut into windows of WINDOW micro-batches of all ranks, sorted by length within a
    window, and the micro-batches of a window are shuffled again. It is still a pure function of seed and position.

    Args:
        *args: as ClipStream.
        length: of the sample with a key, in tokens, roughly.
        **kwargs: as ClipStream.
    """

    def __init__(self, *args: Any, length: Callable[[Key], float], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.length = length

    def order(self, epoch: int) -> np.ndarray:
        """See ClipStream."""
        order = super().order(epoch)
        lengths = np.array([self.length((epoch, int(index))) for index in order])
        group = self.batch_size * self.world_size
        rng = np.random.default_rng([self.seed, epoch, 1])
        parts = []
        for start in range(0, len(order), WINDOW * group):
            window = slice(start, start + WINDOW * group)
            ranked = order[window][np.argsort(lengths[window], kind="stable")]
            groups = [ranked[i : i + group] for i in range(0, len(ranked), group)]
            parts += [groups[i] for i in rng.permutation(len(groups))]
        return np.concatenate(parts)
