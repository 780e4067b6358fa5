"""Prompts and pixels for SGLang: the exported model's own processor makes them; SGLang loads the files."""

import re
from typing import Any

import numpy as np
import torch
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem, MultimodalProcessorOutput
from sglang.srt.multimodal.processors.base_processor import (
    BaseMultimodalProcessor,
    BaseMultiModalProcessorOutput,
    MultimodalSpecialTokens,
)

from liteframe.data.video.sampling import choose_frames
from liteframe.data.video.timeline import Timeline
from liteframe.models.vlm.base import videos_of
from liteframe.pictures import rgb
from liteframe_serving.prompts import BYTES, frames_of, runs
from liteframe_serving.sglang.model import SERVED

# Most frames of a video, as `liteframe ask` has it; --mm-process-config '{"video": {"num_frames": N}}' says otherwise.
NUM_FRAMES = 64


class LiteFrameSglangProcessor(BaseMultimodalProcessor):
    """A request's text, videos and images to token ids, pixels and the places of their features."""

    models = list(SERVED.values())
    gpu_image_decode = False
    video_preprocessing_device = "cpu"  # frames are decoded there, too, so that they are those of training

    def __init__(self, hf_config: Any, server_args: Any, _processor: Any, *args: Any, **kwargs: Any):
        super().__init__(hf_config, server_args, _processor, *args, **kwargs)
        unknown = sorted({*self.image_config, *self.video_config} - {"num_frames"})
        if unknown or self.image_config:
            raise ValueError(
                f"--mm-process-config names {', '.join(unknown) or 'image'}, but size and statistics of the frames "
                "belong to the encoder; only num_frames of video can be chosen"
            )
        self.num_frames = int(self.video_config.get("num_frames", NUM_FRAMES))
        self.mm_tokens = MultimodalSpecialTokens(
            image_token=_processor.image_token, video_token=_processor.video_token
        ).build(_processor)

    async def process_mm_data_async(
        self, image_data: Any, audio_data: Any, input_text: Any, request_obj: Any, **kwargs: Any
    ) -> MultimodalProcessorOutput:
        """Load the files of a request, and prepare them beside the event loop.

        Raises:
            ValueError: sound, ready features, or another number of placeholders than of videos and images.
        """
        video_data = getattr(request_obj, "video_data", None)
        if audio_data or any(isinstance(item, dict) for item in [*(image_data or ()), *(video_data or ())]):
            raise ValueError("this model takes videos and images as files or frames; no sound, no ready features")
        loaded = await self.load_mm_data(
            prompt=input_text, multimodal_tokens=self.mm_tokens, image_data=image_data, video_data=video_data
        )
        if self.mm_processor_executor is None:
            return self.prepare(loaded, self._processor)
        return await self.mm_processor_executor.run(self.prepare, loaded)

    def prepare(self, loaded: BaseMultiModalProcessorOutput, processor: Any) -> MultimodalProcessorOutput:
        """Token ids and items; `processor` is the exported model's."""
        text = loaded.input_text
        images = [rgb(image) for image in loaded.images]
        read = [self.frames(video) for video in loaded.videos]
        videos = [frames for frames, _ in read]
        told = {"video_metadata": [facts for _, facts in read]} if processor.needs_times and read else {}
        inputs = processor(text=text, images=images, videos=videos, **BYTES, **told)
        ids = inputs["input_ids"][0].tolist()
        token = processor.image_token_id
        items = []
        if images or videos:
            pixels = videos_of(inputs["pixel_values_videos"], inputs["video_frames"])
            kinds = re.findall(f"{re.escape(processor.video_token)}|{re.escape(processor.image_token)}", text)
            modalities = [Modality.IMAGE if kind == processor.image_token else Modality.VIDEO for kind in kinds]
            counts = [features(processor, m, f) for m, f in zip(modalities, pixels, strict=True)]
            items = [
                MultimodalDataItem(modality=modality, feature=frames.contiguous(), offsets=places)
                for modality, frames, places in zip(modalities, pixels, runs(ids, token, counts), strict=True)
            ]
        positions: dict[str, Any] = {}
        if processor.mrope is not None:
            places = inputs["position_ids"][:, 0]  # [3,L]
            positions = {"mrope_positions": places, "mrope_position_delta": (places.max() + 1 - len(ids)).view(1, 1)}
        return MultimodalProcessorOutput(
            input_ids=ids, mm_items=items, im_token_id=token, video_token_id=token, **positions
        )

    def frames(self, video: Any) -> tuple[np.ndarray, dict[str, Any] | None]:
        """A video as SGLang hands it over, open for reading or frames [T,H,W,3] -> uint8 [T,H,W,3], and their times.

        Of a file at most `num_frames` frames, those that `liteframe ask` takes; frames that are given are all taken.
        """
        if hasattr(video, "get_frames_at"):
            timeline = Timeline.constant_rate(len(video), 1.0)  # SGLang tells no time stamps
            chosen = choose_frames(timeline, frames=self.num_frames)
            facts = {"fps": getattr(video, "avg_fps", None), "frames_indices": chosen, "total_num_frames": len(video)}
            return video.get_frames_at(chosen), facts
        return frames_of(video), None


def features(processor: Any, modality: Modality, frames: torch.Tensor) -> int:
    """Image tokens that frames [T,3,h,w] take."""
    height, width = frames.shape[-2:]
    if modality == Modality.IMAGE:
        text = processor.image_text(processor.tokens_per_slot(height, width))
    else:
        text = processor.video_text(processor.slots(len(frames), height, width))
    return text.count(processor.image_token)
