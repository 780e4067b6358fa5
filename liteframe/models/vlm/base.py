"""What a Video LLM with a LiteFrame encoder does whatever its family: encode clips, place features, generate.

This file travels inside exported models: it imports torch, transformers and the student, nothing else.

Shapes: V videos, T frames of one video, H x W pixels, [T',h,w,C] the encoder's token grid, B x L the prompt's tokens.
"""

from collections import defaultdict
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from liteframe.models.student.strides import is_still
from liteframe.models.vlm.placeholders import check_placeholders, place_features, with_written_placeholders
from liteframe.models.vlm.vision import LiteFrameVisionModel, computing_dtype

# Clips of one size that the encoder takes at once: bounds the memory a long video needs.
CLIPS_PER_FORWARD = 8


class VlmBackbone:
    """Mix-in of a model without head, before the family's PreTrainedModel.

    It has `vision_tower`, `multi_modal_projector` and `language_model`. A family brings `add_projector`,
    `merge_patches` and, where something ends its videos, `end_embedding`.
    """

    input_modalities = ("image", "video", "text")  # an image is a video of one frame
    counts_itself = True  # positions of its tokens; else they come with the prompt
    output_class: Any
    config: Any
    vision_tower: Any
    multi_modal_projector: Any
    language_model: Any
    post_init: Any

    def __init__(self, config: Any):
        super().__init__(config)  # type: ignore[call-arg]
        self.vision_tower = LiteFrameVisionModel._from_config(config.vision_config)
        self.add_projector(config)
        self.take_language_model(AutoModel.from_config(config.text_config))
        self.post_init()

    def add_projector(self, config: Any) -> None:
        """Set `multi_modal_projector` and what else lies between vision tower and language model."""
        raise NotImplementedError

    def take_language_model(self, language_model: nn.Module) -> None:
        """Set `language_model`."""
        self.language_model = language_model

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
        pixel_values_videos: Tensor | list[Tensor],
        video_frames: Tensor | list[int] | None = None,
        final: bool = True,
        modes: list[str] | None = None,
        first: bool = True,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Encode videos into the language model's space.

        Args:
            pixel_values_videos: [sum of T,3,H,W], the frames of all videos one after another, normalized or uint8; a
                list of V tensors [T,3,H,W] where videos have sizes of their own.
            video_frames: [V], frames of each video; None: all belong to one video (of a list: each is one).
            final: False for clips of a video that are encoded one by one: leaves out what ends it.
            modes: of each video, the compression of an elastic encoder; None is its own.
            first: False for clips that others of their video came before: one frame is then what is left of a video,
                else a still image.
            **kwargs: ignored; transformers' generate adds some.

        Returns:
            pooler_output: a list of V tensors [tokens, text hidden size], in the order of the placeholders.
        """
        dtype = computing_dtype(self.vision_tower, self.multi_modal_projector)
        videos = [
            frames if frames.dtype == torch.uint8 else frames.to(dtype)  # bytes the tower normalizes itself
            for frames in videos_of(pixel_values_videos, video_frames)
        ]
        return self.project_grids(self._encode(videos, modes, first), final)

    def project_grids(self, grids: list[Tensor], final: bool = True) -> BaseModelOutputWithPooling:
        """What get_video_features gives of V videos that have been encoded, each [T',h,w,C]."""
        projector = self.multi_modal_projector
        dtype = computing_dtype(projector, self.vision_tower)
        tokens = [self.merge_patches(grid.to(dtype)).flatten(0, 2) for grid in grids]  # V x [N,C']
        features = projector(torch.cat(tokens)).split([len(t) for t in tokens])  # V x [N,D]
        end = self.end_embedding() if final else None
        if end is not None:
            features = [torch.cat([video, end.to(video)]) for video in features]  # V x [N+1,D]
        return BaseModelOutputWithPooling(pooler_output=list(features))

    def _encode(self, videos: list[Tensor], modes: list[str] | None, first: bool) -> list[Tensor]:
        clip_frames = self.config.vision_config.encoder_config.clip_frames
        return encode_videos(self.vision_tower, clip_frames, videos, modes, first)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values_videos: Tensor | list[Tensor] | None = None,
        video_frames: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        placeholders: list[int] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As transformers' own model, with videos instead of images; see get_video_features for their shapes.

        `mm_encoder_outputs={"video": output of get_video_features}` takes features that are ready. `placeholders` are
        the image tokens of each row, where the caller has counted them; else the device is waited for. What is not
        named goes to the language model: the KV cache too, which is `past_key_values` before transformers 5.24, then
        `cache`.

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
        if ready is not None and position_ids is None:
            check_counts_itself(self)
        if ready is not None and input_ids is None:
            raise ValueError("videos need input_ids: inputs_embeds do not say where the image tokens are")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)  # [B,L,D]
        if input_ids is not None and (ready is not None or input_ids.shape[1] > 1):
            features = [] if ready is None else ready.pooler_output
            placeholder = self.config.image_token_id
            inputs_embeds = place_features(inputs_embeds, input_ids, placeholder, features, placeholders)
        outputs = self.language_model(
            attention_mask=attention_mask, position_ids=position_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        return self.output_class(**outputs)


class VlmForGeneration:
    """Mix-in of a model with head, before the family's PreTrainedModel; it has `model` and `lm_head`.

    Attributes:
        backbone_class: the family's VlmBackbone, which `model` is.
    """

    input_modalities = ("image", "video", "text")  # an image is a video of one frame
    backbone_class: Any
    output_class: Any
    config: Any
    loss_function: Any
    post_init: Any
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: Any):
        super().__init__(config)  # type: ignore[call-arg]
        self.model = self.backbone_class(config)
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

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
            ValueError: the vision tower is not a LiteFrame encoder (see attach_encoder) and could not be loaded, or it
                is an elastic one, whose modes other software does not know.
        """
        if not isinstance(self.model.vision_tower, LiteFrameVisionModel):
            raise ValueError(
                f"cannot save: the vision tower is a {type(self.model.vision_tower).__name__}, which from_pretrained "
                "could not rebuild; attach a LiteFrameEncoder to save the model"
            )
        if modes := self.config.vision_config.encoder_config.modes:
            raise ValueError(
                f"cannot save: the encoder is elastic, with modes {', '.join(modes)}; load the model in one of them "
                "(load_video_llm(..., mode=)), or take one out of the encoder (liteframe extract)"
            )
        super().save_pretrained(save_directory, **kwargs)  # type: ignore[misc]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values_videos: Tensor | list[Tensor] | None = None,
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
        """Hand the videos to the step that reads the prompt; afterwards they are in the cache, where there is one."""
        ready = (kwargs.pop("mm_encoder_outputs", None) or {}).get("video")
        caches = {"past_key_values": past_key_values, "cache": cache}
        kwargs.update((name, value) for name, value in caches.items() if value is not None)
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        ids = inputs.get("input_ids")
        if ids is not None and ids.shape[1] == 1 and not is_first_iteration:
            return inputs
        # Not a first step, but an empty cache: without a cache, or an assistant's beginning.
        begins = _is_empty(kwargs)
        features = [] if ready is None or not (begins or is_first_iteration) else list(ready.pooler_output)
        if ids is not None and (begins or not is_first_iteration):
            placeholder = self.config.image_token_id
            plain = self.get_input_embeddings()(torch.tensor([placeholder], device=ids.device))  # [1,D]
            features = with_written_placeholders(features, ids, placeholder, plain)
        if features:
            inputs["mm_encoder_outputs"] = {"video": BaseModelOutputWithPooling(pooler_output=features)}
        return inputs

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        if any(model_kwargs.get(name) is not None for name in ("pixel_values_videos", "mm_encoder_outputs")):
            check_counts_itself(self.model)
        return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)  # type: ignore[misc]

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """Encode videos once, compare with the prompt, repeat rows for beams or several answers, videos as a group."""
        frames, counts = kwargs.pop("pixel_values_videos", None), kwargs.pop("video_frames", None)
        ready = (kwargs.pop("mm_encoder_outputs", None) or {}).get("video")
        if ready is None and frames is not None:
            ready = self.model.get_video_features(frames, counts)
        features = [] if ready is None else list(ready.pooler_output)
        if input_ids is not None and (_is_empty(kwargs) or (features and expand_size > 1)):
            repeated: list[Tensor] = []
            first = 0
            for videos in check_placeholders(input_ids, self.config.image_token_id, [len(f) for f in features]):
                repeated += features[first : first + videos] * expand_size
                first += videos
            features = repeated
        expanded, kwargs = super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        if features:
            kwargs["mm_encoder_outputs"] = {"video": BaseModelOutputWithPooling(pooler_output=features)}
        return expanded, kwargs


def encode_videos(
    tower: nn.Module, clip_frames: int, videos: list[Tensor], modes: list[str] | None = None, first: bool = True
) -> list[Tensor]:
    """V x [T,3,H,W] -> V x [T',h,w,C], by clips of `clip_frames` frames. A clip never holds frames of two videos.

    A whole video of one frame is a still; `modes` and `first` as of VlmBackbone.get_video_features.
    """
    clips_of_video = [video.split(clip_frames) for video in videos]
    clips = [clip for video in clips_of_video for clip in video]  # each [t,3,H,W], t <= clip_frames
    of_clips: list[dict[str, Any]] = []
    for number, parts in enumerate(clips_of_video):
        how: dict[str, Any] = {} if modes is None else {"mode": modes[number]}
        if first and is_still(len(videos[number]), clip_frames):
            how["still"] = True
        of_clips += [how] * len(parts)
    alike = defaultdict(list)
    for i, (clip, how) in enumerate(zip(clips, of_clips, strict=True)):
        alike[clip.shape, *how.items()].append(i)
    encoded: dict[int, Tensor] = {}
    for members in alike.values():
        for start in range(0, len(members), CLIPS_PER_FORWARD):
            part = members[start : start + CLIPS_PER_FORWARD]
            batch = torch.stack([clips[i] for i in part])  # [n,t,3,H,W]
            features = tower(batch, **of_clips[part[0]]).last_hidden_state  # [n,t',h,w,C]
            encoded.update(zip(part, features, strict=True))
    ends = list(accumulate(len(video) for video in clips_of_video))
    return [torch.cat([encoded[i] for i in range(a, b)]) for a, b in pairwise([0, *ends])]  # V x [T',h,w,C]


def check_counts_itself(model: VlmBackbone) -> None:
    """Refuse a prompt with videos that comes without positions, for a language model that needs them.

    Raises:
        ValueError: it does.
    """
    if not model.counts_itself:
        raise ValueError(
            "position_ids [3,B,L] are missing: the language model counts videos on three axes; the model's own "
            "processor gives them with the prompt"
        )


def videos_of(frames: Tensor | list[Tensor], counts: Tensor | list[int] | None) -> list[Tensor]:
    """Frames as get_video_features takes them -> V x [T,3,H,W], one a video.

    Raises:
        ValueError: frames and counts do not match.
    """
    if isinstance(frames, Tensor):
        total = frames.shape[0]
        counts = [total] if counts is None else [int(n) for n in counts]
        if min(counts, default=0) < 1 or sum(counts) != total:
            raise ValueError(f"video_frames={counts} must be >= 1 each and sum to the {total} frames given")
        return list(frames.split(counts))
    lengths = [len(video) for video in frames]
    counts = lengths if counts is None else [int(n) for n in counts]
    if min(lengths, default=0) < 1 or counts != lengths:
        raise ValueError(f"video_frames={counts} must be >= 1 each and those of the videos given, {lengths}")
    return list(frames)


def _is_empty(kwargs: dict[str, Any]) -> bool:
    """Whether the arguments of a step hold no cache, or one in which nothing has been read."""
    caches = [kwargs[name] for name in ("past_key_values", "cache") if kwargs.get(name) is not None]
    return not any(cache.get_seq_length() for cache in caches)
