"""Conversations -> a batch for the language model, and features of videos that were seen before."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from liteframe.align.dataset import Row, Sample
from liteframe.align.media import MediaKey
from liteframe.data.stream import Key
from liteframe.data.video.errors import VideoError
from liteframe.models.vlm.base import VlmBackbone
from liteframe.models.vlm.chat import IGNORE
from liteframe.models.vlm.mrope import padded_position_ids
from liteframe.models.vlm.processor import joined


class ChatBatch(NamedTuple):
    """Conversations whose videos and images could be read, and a record of each of which one could not.

    A conversation is a row of the tensors; a preference pair is two, the chosen answer and below it the rejected one,
    with media that are there once. R is the number of rows, B of conversations or pairs.

    What a step needs to know of the tokens is counted while they are on the host: to read it from a device is to wait
    for it.

    Attributes:
        input_ids: [R,L], padded on the right; R may be 0 (then L is 0 too).
        attention_mask: [R,L].
        labels: [R,L], -100 where nothing is learned.
        answers: [K], positions whose next token is an answer token in any row.
        tokens: of the rows, without padding.
        placeholders: of each of the R rows, tokens that stand for a feature.
        pixels: [sum of T,3,H,W] of the media whose features are not cached, a list of [T,3,H,W] where their sizes
            differ: uint8 from the loader, normalized float32 on the device.
        video_frames: T of each of these.
        media_counts: number of media of each of the B conversations.
        media_keys: which frames of which file, for each medium; those not cached in the order of `pixels`.
        media_seconds: when the frames of each medium are shown, where there are times.
        cached: for each medium, whether its features are in the cache.
        keys: B keys (epoch, index).
        failures: path, kind, reason and remedy of what could not be read.
        shown: `pixels` in bytes, on the device, where a teacher wants them.
        grids: [sum of T'*h*w,C], what the encoder makes of all media, where a token cache holds it.
        grid_shapes: T', h, w of each of these.
        position_ids: [3,R,L], where the language model counts on three axes.
        modes: of each video whose features are not cached, the mode of an elastic encoder; None of an ordinary one.
        pairs: of preference pairs, what makes each another one for a model (see pair_digest), its mode too.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    answers: Tensor
    tokens: int
    placeholders: list[int]
    pixels: Tensor | list[Tensor]
    video_frames: list[int]
    media_counts: list[int]
    media_keys: list[MediaKey]
    media_seconds: list[list[float] | None]
    cached: list[bool]
    keys: list[Key]
    failures: list[dict[str, str]]
    shown: Tensor | list[Tensor] | None = None
    grids: Tensor | None = None
    grid_shapes: Sequence[tuple[int, int, int]] = ()
    position_ids: Tensor | None = None
    modes: list[str] | None = None
    pairs: Sequence[str] = ()

    @property
    def media_grids(self) -> list[Tensor]:
        """The grids of a token cache, one [T',h,w,C] a medium."""
        if self.grids is None:
            return []
        parts = self.grids.split([math.prod(shape) for shape in self.grid_shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.grid_shapes, strict=True)]


def collate_samples(items: Sequence[Sample | VideoError], pad_token_id: int, image_token_id: int) -> ChatBatch:
    """A batch of the conversations that could be read; failures travel beside them."""
    samples = [item for item in items if isinstance(item, Sample)]
    rows = [row for s in samples for row in (Row(s.input_ids, s.labels, s.position_ids), s.rejected) if row is not None]
    length = max((len(row.input_ids) for row in rows), default=0)
    ids = torch.full((len(rows), length), pad_token_id)  # [R,L]
    labels = torch.full((len(rows), length), IGNORE)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    for number, row in enumerate(rows):
        count = len(row.input_ids)
        ids[number, :count] = torch.tensor(row.input_ids)
        labels[number, :count] = torch.tensor(row.labels)
        mask[number, :count] = 1
    positions = [row.position_ids for row in rows if row.position_ids is not None]
    media = [medium for sample in samples for medium in sample.media]
    videos = [medium.pixels for medium in media if medium.pixels is not None]
    modes = [s.mode for s in samples for medium in s.media if s.mode is not None and medium.pixels is not None]
    grids = [medium.grid for medium in media if medium.grid is not None]
    return ChatBatch(
        input_ids=ids,
        attention_mask=mask,
        labels=labels,
        answers=answer_positions(labels),
        tokens=sum(len(row.input_ids) for row in rows),
        placeholders=(ids == image_token_id).sum(1).tolist(),
        pixels=joined(videos) if videos else torch.empty(0, dtype=torch.uint8),
        video_frames=[len(video) for video in videos],
        media_counts=[len(sample.media) for sample in samples],
        media_keys=[medium.key for medium in media],
        media_seconds=[medium.seconds for medium in media],
        cached=[medium.pixels is None for medium in media],
        keys=[sample.key for sample in samples],
        failures=[item.to_dict() for item in items if isinstance(item, VideoError)],
        grids=torch.cat([grid.flatten(0, 2) for grid in grids]) if grids else None,
        grid_shapes=[(grid.shape[0], grid.shape[1], grid.shape[2]) for grid in grids],
        position_ids=padded_position_ids(positions, mask) if positions else None,
        modes=modes or None,
        pairs=[" ".join(filter(None, (sample.pair, sample.mode))) for sample in samples if sample.pair is not None],
    )


def answer_positions(labels: Tensor) -> Tensor:
    """Positions [K] whose next token is an answer token in any row of labels [B,L].

    Logits are needed there only; elsewhere they would fill the memory (vocabulary x sequence length).
    """
    return (labels[:, 1:] != IGNORE).any(0).nonzero().squeeze(1)


class FeatureCache:
    """Projected features of frames seen before, on the CPU, in this process."""

    def __init__(self) -> None:
        self._features: dict[MediaKey, Tensor] = {}

    def __contains__(self, key: object) -> bool:
        return key in self._features

    def features(self, model: VlmBackbone, batch: ChatBatch) -> BaseModelOutputWithPooling:
        """What `model.get_video_features` gives for all videos of the batch; new ones are computed and kept."""
        fresh = iter(())
        if batch.video_frames:
            fresh = iter(model.get_video_features(batch.pixels, batch.video_frames).pooler_output)
        device = batch.input_ids.device
        features = []
        for key, cached in zip(batch.media_keys, batch.cached, strict=True):
            if not cached:
                self._features[key] = next(fresh).cpu()
            features.append(self._features[key].to(device))
        return BaseModelOutputWithPooling(pooler_output=features)
