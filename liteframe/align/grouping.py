"""Turns of conversations of similar length, so that no rank and no row of a batch waits for a much longer one."""

from collections.abc import Callable
from typing import Any

import numpy as np

from liteframe.data.sampler import ClipStream, Key


class GroupedStream(ClipStream):
    """A ClipStream whose steps are sorted by length.

    Which samples make an optimizer step is the ClipStream's choice; within the step the shorter ones come first, so
    that what the ranks take at the same time is about as long. It is still a pure function of seed and position, and
    a step is the same however many ranks and turns share it.

    Args:
        *args: as ClipStream.
        step: samples in an optimizer step, over all ranks and turns.
        length: of the sample with a key, in tokens, roughly.
        **kwargs: as ClipStream.
    """

    def __init__(self, *args: Any, step: int, length: Callable[[Key], float], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.step, self.length = step, length

    def order(self, epoch: int) -> np.ndarray:
        """See ClipStream. A step that two epochs share is sorted in two parts."""
        order = super().order(epoch)
        lengths = np.array([self.length((epoch, int(index))) for index in order])
        # Steps begin at multiples of `step` in the stream of all epochs.
        begun = epoch * self.videos // self.step
        within = (epoch * self.videos + np.arange(self.videos)) // self.step - begun
        return order[np.lexsort((lengths, within))]
