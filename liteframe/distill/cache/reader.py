"""A finished cache of CTD targets: any clip by split, view and index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor
from typing_extensions import override

from liteframe.data.video.errors import VideoError
from liteframe.distill.cache.codec import TargetCodec, decode_jpeg
from liteframe.distill.cache.settings import STATISTICS, CacheSettings, Split
from liteframe.distill.clip_view import ClipView
from liteframe.distill.statistics import ChannelStatistics
from liteframe.reduce.pooled_teacher import factor_between
from liteframe.training.cache.reader import Cache


@dataclass(frozen=True)
class CachedClip:
    """One clip of a cache.

    Attributes:
        view: which clip it is; `view.frame_mask` tells the real frames.
        target: raw pooled teacher features [T',h,w,C], before clipping and standardization; bf16, or float32 where the
            codec is int8.
        frames: uint8 [T,H,W,3] at the size that the teacher saw, or None where the cache holds none.
        log_weights: float32 [T',h,w] of the target's tokens, or None where the cache holds none (see Pooled).
    """

    view: ClipView
    target: Tensor
    frames: np.ndarray | None
    log_weights: Tensor | None = None


class TargetCache(Cache[CacheSettings]):
    """A finished cache of CTD targets."""

    settings_class = CacheSettings

    @cached_property
    def statistics(self) -> ChannelStatistics:
        """Channel statistics of the targets.

        Raises:
            ValueError: the file is damaged.
        """
        return ChannelStatistics.from_bytes(self.small_file(STATISTICS), self.settings.dim)

    @cached_property
    def codec(self) -> TargetCodec:
        """The codec that the targets were stored with, from settings and statistics."""
        return TargetCodec.of(self.settings, self.statistics)

    def read(self, split: Split, view: int, index: int) -> CachedClip | VideoError:
        """View `view` of video `index` of the split; the middle clip of a held-out video is view 0 of "val".

        A video that could not be read when the cache was built comes back as that error.

        Raises:
            IndexError: the cache does not cover it.
            ValueError: a file is missing or damaged; the message names it and the remedy.
        """
        clip = self.stored(split, view, index)
        if clip.failed:
            return VideoError(**clip.facts["failure"])
        seen, frames = ClipView.from_dict(clip.facts["view"]), None
        if clip.jpeg:
            frames = np.stack([decode_jpeg(file, seen.size) for file in clip.jpeg])  # [T,H,W,3]
        return CachedClip(seen, self.codec.decode(clip.encoded), frames, clip.encoded.get("log_weight"))

    @override
    def refuse_other(self, option: str, run: Mapping[str, Any]) -> None:
        """As of Cache; one of small windows serves runs of larger ones, where it has the weights of its tokens."""
        known = self.settings
        if known.log_weights:
            try:
                factor_between(known.compression, run["compression"])
            except ValueError as error:
                raise ValueError(
                    f"--{option} {self.folder} is too coarse: {error}. Leave finer modes out of model.student.modes, "
                    f"or build another cache with this run's: {known.build}"
                ) from error
            run = {**run, "log_weights": True, "compression": known.compression}
        super().refuse_other(option, run)
