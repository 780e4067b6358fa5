"""What a Video LLM with a LiteFrame encoder does whatever its family: encode clips, place features, generate.

This file travels inside exported models: it imports torch and transformers, nothing else.

Shapes: V videos, T frames of one video, H x W pixels, [T',h,w,C] the encoder's token grid, B x L the prompt's tokens.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from liteframe.models.vlm.vision import LiteFrameVisionModel

# Clips of one size that the encoder takes at once: bounds the memory a long video needs.
CLIPS_PER_FORWARD = 8


class VlmBackbone:
    """Mix-in of a model without head; it has `vision_tower`, `multi_modal_projector` and `language_model`.

    A family brings `add_projector`, `merge_patches` and, where something ends its videos, `end_embedding`.
    """

    input_modalities = ("video", "text")
    output_class: Any
    config: Any
    vision_tower: Any
    multi_modal_projector: Any
    language_model: Any

    def add_projector(self, config: Any) -> None:
        """Set `multi_modal_projector` and what else lies between vision tower and language model."""
        raise NotImplementedError

    def merge_patches(self, grid: Tensor) -> Tensor:
        """What the projector takes of a grid: [T',h,w,C] -> [T',h',w',C'], a token each."""
        raise NotImplementedError

    def end_embedding(self) -> Tensor | None:
        """What ends a video for the language model [1, text hidden size], if anything does."""
        return None

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embedding."""
        self.language_model.set_input_embeddings(value)

    def get_video_features(
        self,
        pixel_values_videos: Tensor,
        video_frames: Tensor | list[int] | None = None,
        final: bool = True,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Encode videos into the language model's space.

        Args:
            pixel_values_videos: [sum of T,3,H,W], the frames of all videos one after another.
            video_frames: [V], frames of each video; None: all belong to one video.
            final: False for clips of a video that are encoded one by one: leaves out what ends it.
            **kwargs: ignored; transformers' generate adds some.

        Returns:
            pooler_output: a list of V tensors [tokens, text hidden size], in the order of the placeholders.
        """
        total = pixel_values_videos.shape[0]
        counts = [total] if video_frames is None else [int(n) for n in video_frames]
        if min(counts, default=0) < 1 or sum(counts) != total:
            raise ValueError(f"video_frames={counts} must be >= 1 each and sum to the {total} frames given")
        weight = self.multi_modal_projector.linear_1.weight
        frames = pixel_values_videos.to(next(self.vision_tower.parameters(), weight).dtype)
        grids = self._encode(frames, counts)  # V x [T',h,w,C]
        tokens = [self.merge_patches(grid.to(weight.dtype)).flatten(0, 2) for grid in grids]  # V x [N,C']
        features = self.multi_modal_projector(torch.cat(tokens)).split([len(t) for t in tokens])  # V x [N,D]
        end = self.end_embedding() if final else None
        if end is not None:
            features = [torch.cat([video, end.to(video)]) for video in features]  # V x [N+1,D]
        return BaseModelOutputWithPooling(pooler_output=list(features))

    def _encode(self, frames: Tensor, counts: list[int]) -> list[Tensor]:
        """[sum of T,3,H,W] -> per video [T',h,w,C]. A clip never holds frames of two videos."""
        clip_frames = self.config.vision_config.encoder_config.clip_frames
        clips_of_video = [video.split(clip_frames) for video in frames.split(counts)]
        clips = [clip for video in clips_of_video for clip in video]  # each [t,3,H,W], t <= clip_frames
        by_length = defaultdict(list)
        for i, clip in enumerate(clips):
            by_length[len(clip)].append(i)
        encoded: dict[int, Tensor] = {}
        for members in by_length.values():
            for start in range(0, len(members), CLIPS_PER_FORWARD):
                part = members[start : start + CLIPS_PER_FORWARD]
                batch = torch.stack([clips[i] for i in part])  # [n,t,3,H,W]
                features = self.vision_tower(batch).last_hidden_state  # [n,t',h,w,C]
                encoded.update(zip(part, features, strict=True))
        ends = list(accumulate(len(video) for video in clips_of_video))
        return [torch.cat([encoded[i] for i in range(a, b)]) for a, b in pairwise([0, *ends])]  # V x [T',h,w,C]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_frames: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As transformers' own model, with videos instead of images; see get_video_features for their shapes.

        `mm_encoder_outputs={"video": output of get_video_features}` takes features that are ready. What is not named
        goes to the language model: the KV cache too, which is `past_key_values` before transformers 5.24, then `cache`.

        Raises:
            ValueError: image tokens in the prompt and features of the videos do not match, or inputs contradict.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        ready = (mm_encoder_outputs or {}).get("video")
        if ready is not None and pixel_values_videos is not None:
            raise ValueError("pass pixel_values_videos or mm_encoder_outputs['video'], not both")
        if ready is None and pixel_values_videos is not None:
            ready = self.get_video_features(pixel_values_videos, video_frames)
        if ready is not None and input_ids is None:
            raise ValueError("videos need input_ids: inputs_embeds do not say where the image tokens are")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)  # [B,L,D]
        if input_ids is not None and (ready is not None or input_ids.shape[1] > 1):
            features = [] if ready is None else ready.pooler_output
            inputs_embeds = place_features(inputs_embeds, input_ids, self.config.image_token_id, features)
        outputs = self.language_model(
            attention_mask=attention_mask, position_ids=position_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        return self.output_class(**outputs)


def place_features(embeddings: Tensor, input_ids: Tensor, placeholder_id: int, features: Sequence[Tensor]) -> Tensor:
    """Put the features of videos where a prompt, or a part of one, has their placeholders.

    Args:
        embeddings: [B,L,D], of the tokens.
        input_ids: [B,L], on any device; on the CPU, no device has to be waited for.
        placeholder_id: token that stands for one feature.
        features: [tokens,D] of each video, row after row in the order of the prompt; in any floating type.

    Returns:
        [B,L,D]: the embeddings, with features in place of the placeholders.

    Raises:
        ValueError: the numbers of placeholders and of features differ, in all or within a row.
    """
    if not torch.compiler.is_compiling():
        check_placeholders(input_ids, placeholder_id, [len(video) for video in features])
    if not features:
        return embeddings
    mask = (input_ids == placeholder_id).unsqueeze(-1).to(embeddings.device)  # [B,L,1]
    return embeddings.masked_scatter(mask, torch.cat(list(features)).to(embeddings))


def check_placeholders(input_ids: Tensor, image_token_id: int, video_tokens: list[int]) -> list[int]:
    """Number of videos in each row of the prompt [B,L], given the tokens that each video yields.

    Raises:
        ValueError: the numbers of image tokens and of features differ, in all or within a row.
    """
    per_row = (input_ids == image_token_id).sum(-1).tolist()
    if sum(per_row) != sum(video_tokens):
        raise ValueError(
            f"the prompt holds {sum(per_row)} image tokens, but the videos give {sum(video_tokens)} features; "
            "build both with the model's own processor, and do not truncate the prompt"
        )
    ends = list(accumulate(video_tokens))
    videos_up_to = [0]
    for tokens_up_to in accumulate(per_row):
        if tokens_up_to and tokens_up_to not in ends:
            raise ValueError(
                f"rows of the prompt hold {per_row} image tokens, which does not cut the videos' {video_tokens} "
                "features between two videos; each row needs all tokens of its own videos"
            )
        videos_up_to.append(ends.index(tokens_up_to) + 1 if tokens_up_to else 0)
    return [b - a for a, b in pairwise(videos_up_to)]


class VlmForGeneration:
    """Mix-in of a model with head; it has `model`, a VlmBackbone, and `lm_head`."""

    input_modalities = ("video", "text")
    output_class: Any
    config: Any
    model: Any
    lm_head: Any
    loss_function: Any

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embedding."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embedding."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head, from C channels to V logits."""
        return self.lm_head

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """As in transformers.

        Raises:
            ValueError: the vision tower is not a LiteFrame encoder (see attach_encoder) and could not be loaded.
        """
        if not isinstance(self.model.vision_tower, LiteFrameVisionModel):
            raise ValueError(
                f"cannot save: the vision tower is a {type(self.model.vision_tower).__name__}, which from_pretrained "
                "could not rebuild; attach a LiteFrameEncoder to save the model"
            )
        super().save_pretrained(save_directory, **kwargs)  # type: ignore[misc]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_frames: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Logits [B,L,vocabulary] and, with labels [B,L] (-100 = ignored), the mean next-token loss."""
        outputs = self.model(
            input_ids=input_ids,
            pixel_values_videos=pixel_values_videos,
            video_frames=video_frames,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep])  # [B,kept,vocabulary]
        loss = None
        if labels is not None:
            vocabulary = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocabulary, **kwargs)
        # The cache among the rest is called past_key_values or cache, as transformers has it.
        rest = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return self.output_class(loss=loss, logits=logits, **rest)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        inputs_embeds: Tensor | None = None,  # generate looks for this name before it accepts embeddings
        is_first_iteration: bool = False,
        past_key_values: Any = None,  # the cache, before transformers 5.24
        cache: Any = None,  # and from then on; generate looks for the name here
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Hand the videos to the first step only; afterwards they are in the cache."""
        caches = {"past_key_values": past_key_values, "cache": cache}
        kwargs.update((name, value) for name, value in caches.items() if value is not None)
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in ("pixel_values_videos", "video_frames", "mm_encoder_outputs"):
                kwargs.pop(name, None)
        return super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """Repeat each row for beams or several answers; its videos are encoded once and repeated as a group."""
        if expand_size == 1 or input_ids is None:
            return input_ids, kwargs  # type: ignore[return-value]
        frames, counts = kwargs.pop("pixel_values_videos", None), kwargs.pop("video_frames", None)
        ready = (kwargs.pop("mm_encoder_outputs", None) or {}).get("video")
        if ready is None and frames is not None:
            ready = self.model.get_video_features(frames, counts)
        if ready is not None:
            features = list(ready.pooler_output)
            repeated: list[Tensor] = []
            first = 0
            for videos in check_placeholders(input_ids, self.config.image_token_id, [len(f) for f in features]):
                repeated += features[first : first + videos] * expand_size
                first += videos
            ready = BaseModelOutputWithPooling(pooler_output=repeated)
        expanded, kwargs = super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        return expanded, kwargs if ready is None else {**kwargs, "mm_encoder_outputs": {"video": ready}}
