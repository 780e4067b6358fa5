"""Stored CTD targets (liteframe.training.cache says how): settings, codecs, the reader, and how they are made.

Beside the settings lies statistics.safetensors, the channel statistics of the targets (ChannelStatistics). Splits are
"train", in K views, and "val", in one; view k of a video is the clip of key (k, index).
"""

from liteframe.distill.cache.reader import CachedClip, TargetCache
from liteframe.distill.cache.settings import CacheSettings

__all__ = ["CacheSettings", "CachedClip", "TargetCache"]
