"""Prompt layout, token counts, pixels and the folder of the processor."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import InternVLVideoProcessor

from liteframe.models.vlm.internvl import LiteFrameInternVLProcessor

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def full_size(tokenizer):
    video = InternVLVideoProcessor(size={"height": 448, "width": 448}, image_mean=MEAN, image_std=STD)
    return LiteFrameInternVLProcessor(tokenizer, video)


@pytest.mark.parametrize("count", [1, 4, 6])
def test_64_tokens_per_slot_at_448(tokenizer, frames, count):
    inputs = full_size(tokenizer)(text="<video>\nwhat?", videos=[frames(count, 32, 40)])
    slots = -(-count // 4)
    assert inputs["pixel_values_videos"].shape == (count, 3, 448, 448)
    assert inputs["video_frames"].tolist() == [count]
    assert (inputs["input_ids"] == tokenizer.context_image_token_id).sum() == 64 * slots


def test_one_line_per_slot_with_true_frame_numbers(processor):
    image = "<img>" + 4 * "<IMG_CONTEXT>" + "</img>"
    slots = processor.slots(9, 64, 64)
    assert slots == [(0, 3, 4), (4, 7, 4), (8, 8, 4)]
    assert processor.video_text(slots) == f"Frame1-4: {image}\nFrame5-8: {image}\nFrame9-9: {image}"


def test_slots_of_any_length_and_none(processor):
    slots = [(0, 2, 1), (3, 3, 0), (4, 9, 2)]
    expected = "Frame1-3: <img><IMG_CONTEXT></img>\nFrame5-10: <img><IMG_CONTEXT><IMG_CONTEXT></img>"
    assert processor.video_text(slots) == expected


def test_prompt_reaches_the_tokens_unchanged(processor, frames):
    text = "before <video>\nafter <video>\n"
    inputs = processor(text=text, videos=[frames(4), frames(8, seed=1)])
    first, second = (processor.video_text(processor.slots(count, 64, 64)) for count in (4, 8))
    expanded = f"before {first}\nafter {second}\n"
    assert inputs["input_ids"][0].tolist() == processor.tokenizer(expanded)["input_ids"]


def test_pixels_are_the_checkpoints_own_resize_and_statistics(processor, frames):
    video = frames(3, 64, 64)
    expected = (video.astype(np.float64) / 255 - MEAN) / STD
    np.testing.assert_allclose(processor.pixels(video).permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)
    flat = np.full((1, 30, 50, 3), 128, np.uint8)  # a resize of a constant is that constant
    expected = (128 / 255 - np.array(MEAN)) / STD
    np.testing.assert_allclose(processor.pixels(flat)[0, :, 5, 7].numpy(), expected, atol=1e-5)


def test_images_are_videos_of_one_frame_in_the_order_of_the_text(processor, frames):
    still, video = frames(1, seed=3)[0], frames(5)
    inputs = processor(text="<IMG_CONTEXT>\n<video>\n<IMG_CONTEXT>\n", videos=[video], images=[still, still])
    assert inputs["video_frames"].tolist() == [1, 5, 1]
    assert torch.equal(inputs["pixel_values_videos"][1:6], processor.pixels(video))
    assert torch.equal(inputs["pixel_values_videos"][:1], processor.pixels(still[None]))
    pil = processor(text="<IMG_CONTEXT>", images=Image.fromarray(still))
    assert torch.equal(pil["pixel_values_videos"], processor.pixels(still[None]))
    decoded = processor.tokenizer.decode(inputs["input_ids"][0])
    assert len(re.findall("<IMG_CONTEXT>", decoded)) == 4 + 8 + 4


def test_saved_and_loaded(processor, frames, prompt, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = LiteFrameInternVLProcessor.from_pretrained(tmp_path)
    assert (loaded.frames_per_slot, loaded.pixels_per_token) == (4, 32)
    assert loaded.chat_template == processor.chat_template
    a, b = (p(text=prompt, videos=[frames(6, 40, 30)]) for p in (processor, loaded))
    assert all(torch.equal(a[name], b[name]) for name in processor.model_input_names)


def test_chat_template_takes_frames(processor, frames, prompt):
    content = [{"type": "video", "video": frames(6)}, {"type": "text", "text": "what colour is the circle?"}]
    chat = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(
        chat, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    expected = processor(text=prompt, videos=[frames(6)])
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    assert torch.equal(inputs["pixel_values_videos"], expected["pixel_values_videos"])


def test_bad_input_names_what_is_wrong(processor, tokenizer, frames):
    with pytest.raises(ValueError, match="2 <video> placeholders, but 1 videos"):
        processor(text="<video> <video>", videos=[frames(4)])
    with pytest.raises(ValueError, match="0 <video> placeholders, but 1 videos"):
        processor(text="hello", videos=[frames(4)])
    with pytest.raises(ValueError, match="uint8"):
        processor(text="<video>", videos=[frames(4).astype(np.float32)])
    with pytest.raises(ValueError, match=r"a.mp4: there is no such file"):
        processor(text="<video>", videos=["a.mp4"])
    with pytest.raises(ValueError, match="T >= 1"):
        processor(text="<video>", videos=[frames(0)])
    odd = InternVLVideoProcessor(size={"height": 450, "width": 448}, image_mean=MEAN, image_std=STD)
    with pytest.raises(ValueError, match=r"450x448.*multiples of 56"):
        LiteFrameInternVLProcessor(tokenizer, odd)(text="<video>", videos=[frames(1, 16, 16)])
