"""Features of videos that a frozen encoder and projector need to compute only once."""

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from liteframe.align.dataset import ChatBatch, FramesKey
from liteframe.models.video_llm_base import VideoModel


class FeatureCache:
    """Projected features of frames seen before, on the CPU, in this process."""

    def __init__(self) -> None:
        self._features: dict[FramesKey, Tensor] = {}

    def __contains__(self, key: object) -> bool:
        return key in self._features

    def __len__(self) -> int:
        return len(self._features)

    def __getitem__(self, key: FramesKey) -> Tensor:
        return self._features[key]

    def __setitem__(self, key: FramesKey, features: Tensor) -> None:
        self._features[key] = features

    @torch.no_grad()
    def features(self, model: VideoModel, batch: ChatBatch) -> BaseModelOutputWithPooling:
        """What `model.get_video_features` gives for all videos of the batch; new ones are computed and kept."""
        fresh = iter(())
        if batch.video_frames:
            fresh = iter(model.get_video_features(batch.pixels, batch.video_frames).pooler_output)
        device = batch.input_ids.device
        features = []
        for key, known in zip(batch.frames, batch.known, strict=True):
            if not known:
                self._features[key] = next(fresh).cpu()
            features.append(self._features[key].to(device))
        return BaseModelOutputWithPooling(pooler_output=features)
