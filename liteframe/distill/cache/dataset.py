"""A target cache in the place of live clips and a teacher: a dataset with the same keys."""

from __future__ import annotations

import dataclasses

import torch
from torch.utils.data import Dataset

from liteframe.data.stream import Key
from liteframe.data.video.errors import VideoError
from liteframe.distill.cache.reader import TargetCache
from liteframe.distill.cache.settings import Split
from liteframe.distill.clips import Clip, ClipDataset


class CachedClips(Dataset["Clip | VideoError"]):
    """`dataset[(epoch, index)]` is view `epoch % K` of video `index`, as the cache has it; nothing is drawn anew.

    A video that failed while the cache was built comes back as that failure.

    Args:
        cache: K views of each video.
        split: "train" or "val".
        clips: the same videos; decodes the frames of a stored view where the cache has none.
    """

    def __init__(self, cache: TargetCache, split: Split, clips: ClipDataset):
        self.cache, self.split, self.clips = cache, split, clips

    def __len__(self) -> int:
        """Number of videos."""
        return len(self.clips)

    def __getitem__(self, key: Key) -> Clip | VideoError:
        """The clip and target of `key` = (epoch, index), or the reason why there is none."""
        epoch, index = key
        stored = self.cache.read(self.split, epoch % self.views, index)
        path = self.clips.entries[index].video  # the videos may have moved since
        if isinstance(stored, VideoError):
            return VideoError(path, stored.kind, stored.reason, stored.remedy)
        view = dataclasses.replace(stored.view, video=path)
        if self.clips.sizes is not None and view.size != self.clips.sizes[index]:
            known, ours = ("x".join(map(str, size)) for size in (view.size, self.clips.sizes[index]))
            reason = f"its target in {self.cache.folder} is for clips of {known}, and the list of videos makes {ours}"
            return VideoError(path, "index", reason, "give the list that the cache was built from, or build it again")
        try:
            frames = self.clips.frames(view) if stored.frames is None else stored.frames
        except VideoError as error:
            return error
        return Clip(torch.as_tensor(frames), view, key, stored.target, stored.log_weights)

    @property
    def views(self) -> int:
        """Views that are stored of each video: the cache's K in training, one of held-out videos."""
        return self.cache.settings.views if self.split == "train" else 1
