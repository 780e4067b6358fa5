"""Ask a Video LLM several questions about one video: the video is encoded once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from liteframe.data.chat import PLACEHOLDER, question_prompt
from liteframe.data.processor import LiteFrameInternVLProcessor


@torch.inference_mode()
def answer(
    model: Any,
    processor: Any,
    frames: np.ndarray,
    questions: str | Sequence[str],
    *,
    max_new_tokens: int = 32,
    system: str | None = None,
) -> list[str]:
    """Greedy answers, one a question; each question is asked on its own.

    Args:
        model: an InternVL of transformers, or one with a LiteFrame encoder, in eval mode.
        processor: the processor that fits it.
        frames: uint8 [T,H,W,3].
        questions: one or several; without the video placeholder.
        max_new_tokens: longest answer.
        system: a system message; None sends none.
    """
    questions = [questions] if isinstance(questions, str) else list(questions)
    video, features = encode_frames(model, processor, frames)
    prompts = [question_prompt(question, system).replace(PLACEHOLDER, video, 1) for question in questions]
    tokenizer = processor.tokenizer
    inputs = tokenizer(prompts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt").to(
        model.device
    )
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    places = (inputs["input_ids"] == model.config.image_token_id).unsqueeze(-1)
    embeds = embeds.masked_scatter(places, features.to(embeds).repeat(len(prompts), 1))
    generated = model.generate(
        inputs_embeds=embeds,
        attention_mask=inputs["attention_mask"],
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    return [text.strip() for text in tokenizer.batch_decode(generated, skip_special_tokens=True)]


def encode_frames(model: Any, processor: Any, frames: np.ndarray) -> tuple[str, Tensor]:
    """What stands for a video in the prompt, and its features [image tokens, text hidden size].

    Args:
        model: as for answer.
        processor: as for answer.
        frames: uint8 [T,H,W,3].
    """
    if isinstance(processor, LiteFrameInternVLProcessor):
        pixels = processor.pixels(frames).to(model.device)
        text = processor.slot_prompt(len(frames), *pixels.shape[-2:])
        return text, model.model.get_video_features(pixels).pooler_output[0]
    video = torch.as_tensor(frames).permute(0, 3, 1, 2).contiguous()
    inputs = processor.video_processor(videos=[video], return_tensors="pt", do_sample_frames=False)
    output = model.model.get_image_features(pixel_values=inputs["pixel_values_videos"][0].to(model.device))
    return processor.replace_video_token(inputs, 0), output.pooler_output.flatten(0, 1)
