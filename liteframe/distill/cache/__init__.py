"""Stored CTD targets: settings, codecs, shards, the reader, and how a cache is built and verified.

A cache is a folder:

    settings.json            what the targets depend on (CacheSettings)
    statistics.safetensors   channel statistics (ChannelStatistics)
    train-000-00000.safetensors, ..., val-000-00000.safetensors
                             shards: clips of one view, in the order of the videos; one that is there is whole
    bad_videos.jsonl         a row for each video that could not be read
    index.json               all digests, written last: a folder without it is not finished
"""

from liteframe.distill.cache.reader import CachedClip, TargetCache
from liteframe.distill.cache.settings import CacheSettings

__all__ = ["CacheSettings", "CachedClip", "TargetCache"]
