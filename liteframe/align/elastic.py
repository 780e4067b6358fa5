"""Conversations for an elastic encoder: each sample draws the compression in which its videos are shown."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch.utils.data import Dataset
from typing_extensions import override

from liteframe.align.dataset import ConversationDataset, Sample
from liteframe.data.stream import Key
from liteframe.data.video.errors import VideoError
from liteframe.models.vlm.processor import LiteFrameProcessor


class ElasticConversations(Dataset["Sample | VideoError"]):
    """`dataset[(epoch, index)]` is conversation `index` in a mode that is drawn by (seed, epoch, index) alone.

    Args:
        of_modes: the conversations in each mode.
        seed: of the draws.
    """

    def __init__(self, of_modes: Mapping[str, ConversationDataset], seed: int):
        self.of_modes, self.seed = dict(of_modes), seed

    def __len__(self) -> int:
        """Number of conversations."""
        return len(next(iter(self.of_modes.values())))

    @override
    def __getitem__(self, key: Key) -> Sample | VideoError:
        mode = self.mode(key)
        item = self.of_modes[mode][key]
        return item._replace(mode=mode) if isinstance(item, Sample) else item

    def length(self, key: Key) -> float:
        """As of ConversationDataset."""
        return self.of_modes[self.mode(key)].length(key)

    def mode(self, key: Key) -> str:
        """The mode of a sample; its frames and rate are drawn apart."""
        modes = list(self.of_modes)
        return modes[int(np.random.default_rng([self.seed, *key, len(modes)]).integers(len(modes)))]


def budgets_of(budgets: Sequence[int], own: LiteFrameProcessor, other: LiteFrameProcessor) -> list[int]:
    """Frames with as many tokens in another mode as these budgets have in the encoder's own: 1024 at 32x for 512."""
    return [max(1, round(budget * _density(own) / _density(other))) for budget in budgets]


def _density(processor: LiteFrameProcessor) -> float:
    """Tokens a frame."""
    return processor.tokens_per_slot(*processor.frame_size) / processor.frames_per_slot
