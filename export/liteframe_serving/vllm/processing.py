"""Prompts and pixels for vLLM: exactly those of the exported model's own processor."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdateDetails,
)

from liteframe.models.vlm.family import family_of
from liteframe.models.vlm.processor import LiteFrameProcessor
from liteframe_serving.prompts import frames_that_fit, image_ids, pixels, video_ids, video_ids_within


class LiteFrameProcessingInfo(BaseProcessingInfo):
    """Which processor, and which inputs it takes."""

    def get_hf_processor(self, **kwargs: object) -> LiteFrameProcessor:
        """The exported model's processor."""
        return self.ctx.get_hf_processor(family_of(self.get_hf_config().model_type).processor_class, **kwargs)

    def get_data_parser(self) -> MultiModalDataParser:
        """Videos come with what is known of their times where the language model is told them."""
        if not self.get_hf_processor().needs_times:
            return super().get_data_parser()
        return MultiModalDataParser(video_needs_metadata=True)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Any number of videos and images in a prompt."""
        return {"video": None, "image": None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """Features of the largest image and of the longest video that a prompt of `seq_len` tokens can hold."""
        processor = self.get_hf_processor()
        ids = {"image": image_ids(processor), "video": video_ids(processor, frames_that_fit(processor, seq_len))}
        return {modality: ids[modality].count(processor.image_token_id) for modality in mm_counts}


class LiteFrameDummyInputs(BaseDummyInputsBuilder[LiteFrameProcessingInfo]):
    """The largest inputs of a given number of tokens, with which vLLM measures memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """A prompt with one placeholder for each image and video."""
        processor = self.info.get_hf_processor()
        return processor.image_token * mm_counts.get("image", 0) + processor.video_token * mm_counts.get("video", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]) -> Any:
        """Images, and videos that fill the rest of `seq_len` tokens."""
        processor = self.info.get_hf_processor()
        images, videos = mm_counts.get("image", 0), mm_counts.get("video", 0)
        height, width = processor.frame_size
        budget = (seq_len - images * len(image_ids(processor))) // max(videos, 1)
        size = {"width": width, "height": height}
        clips = self._get_dummy_videos(
            **size,
            num_frames=frames_that_fit(processor, budget),
            num_videos=videos,
            overrides=mm_options.get("video"),
        )
        if processor.needs_times:
            clips = [(clip, {"fps": 1.0, "frames_indices": list(range(len(clip)))}) for clip in clips]
        return {
            "image": self._get_dummy_images(**size, num_images=images, overrides=mm_options.get("image")),
            "video": clips,
        }


class LiteFrameVllmProcessor(BaseMultiModalProcessor[LiteFrameProcessingInfo]):
    """Frames to pixels, and a video's token to the lines of its slots."""

    def _call_hf_processor(self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        if hf_kwargs:
            raise ValueError(
                f"mm_processor_kwargs {', '.join(hf_kwargs)} cannot be given: size and statistics of the frames "
                "belong to the encoder; choose the number of frames with --media-io-kwargs"
            )
        processor = self.info.get_hf_processor()

        def prepare(videos: Sequence[Any] = (), images: Sequence[Any] = (), **_: object) -> BatchFeature:
            return BatchFeature(pixels(processor, list(videos), list(images)))

        return self.info.ctx.call_hf_processor(prepare, hf_data)  # which casts to the model's dtype

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        frames = hf_inputs.get("video_frames", torch.empty(0, dtype=torch.long))
        of_videos = MultiModalFieldConfig.flat_from_sizes("video", frames)
        if isinstance(hf_inputs.get("pixel_values_videos"), list):  # of several sizes
            of_videos = MultiModalFieldConfig.batched("video")
        return {
            "pixel_values": MultiModalFieldConfig.batched("image"),
            "pixel_values_videos": of_videos,
            "video_frames": MultiModalFieldConfig.batched("video", keep_on_cpu=True),
            "video_milliseconds": MultiModalFieldConfig.flat_from_sizes("video", frames, keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptReplacement]:
        processor = self.info.get_hf_processor()
        longest = self.info.ctx.model_config.max_model_len

        def features(ids: list[int]) -> PromptUpdateDetails:
            return PromptUpdateDetails.select_token_id(ids, processor.image_token_id)

        def video(item: int) -> PromptUpdateDetails:
            told = {name: field.data for name, field in out_mm_kwargs["video"][item].items()}
            frames, _, height, width = told["pixel_values_videos"].shape
            times = told.get("video_milliseconds")
            seconds = None if times is None else [time / 1000 for time in times.tolist()]
            return features(video_ids_within(processor, frames, longest, seconds, (height, width)))

        def image(item: int) -> PromptUpdateDetails:
            height, width = out_mm_kwargs["image"][item]["pixel_values"].data.shape[-2:]
            return features(image_ids(processor, (height, width)))

        return [
            PromptReplacement(
                modality="video",
                target=[processor.tokenizer.convert_tokens_to_ids(processor.video_token)],
                replacement=video,
            ),
            PromptReplacement(
                modality="image",
                target=[processor.image_token_id],
                replacement=image,
            ),
        ]
