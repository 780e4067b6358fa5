"""The video LLM against transformers' own modules, alone against batched, before against after saving."""

import json

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText
from worlds.students import student_config

from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.vlm.attach import attach_encoder
from liteframe.models.vlm.internvl import LiteFrameInternVLForConditionalGeneration, pixel_shuffle
from liteframe.reduce.wap import weighted_average_pool

GRID = student_config(dim=8, depth=2, heads=1)


class PooledTower(nn.Module):
    """InternVL's own tower frame by frame, then WAP: an encoder that exists in memory only."""

    def __init__(self, tower):
        super().__init__()
        self.tower = tower
        self.seen = []

    def forward(self, video):
        self.seen.append(video)
        tokens = self.tower(pixel_values=video.flatten(0, 1)).last_hidden_state.unflatten(0, video.shape[:2])
        return weighted_average_pool(tokens[:, :, 1:].unflatten(2, (8, 8)), query=tokens[:, :, 0])


@torch.no_grad()
def manual_logits(vlm, inputs):
    """Logits of one video of at most one clip, by the modules of transformers and a plain loop over WAP's blocks."""
    tokens = vlm.model.vision_tower(pixel_values=inputs["pixel_values_videos"]).last_hidden_state
    patches, cls = tokens[:, 1:].reshape(-1, 8, 8, 128), tokens[:, 0]
    grids = torch.zeros(-(-len(tokens) // 4), 4, 4, 128)
    for slot in range(len(grids)):
        for row in range(4):
            for col in range(4):
                members, logits = [], []
                for t in range(4 * slot, min(4 * slot + 4, len(tokens))):
                    for member in patches[t, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2].reshape(-1, 128):
                        members.append(member)
                        logits.append(cls[t] @ member / 128**0.5)
                grids[slot, row, col] = torch.stack(logits).softmax(0) @ torch.stack(members)
    shuffled = vlm.model.pixel_shuffle(grids, scale_factor=0.5)
    features = vlm.model.multi_modal_projector(shuffled.reshape(-1, shuffled.shape[-1]))
    embeds = vlm.get_input_embeddings()(inputs["input_ids"])
    embeds[inputs["input_ids"] == vlm.config.image_token_id] = features
    return vlm(inputs_embeds=embeds, attention_mask=inputs["attention_mask"]).logits


@pytest.mark.parametrize("count", [1, 6, 8])
def test_logits_equal_a_manual_computation_by_transformers_modules(vlm, processor, frames, prompt, count):
    model = attach_encoder(vlm, PooledTower(vlm.model.vision_tower), config=GRID).eval()
    inputs = processor(text=prompt, videos=[frames(count)])
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, manual_logits(vlm, inputs), atol=2e-5, rtol=1e-4)


def test_clips_end_where_a_video_ends(vlm, processor, frames, prompt):
    tower = PooledTower(vlm.model.vision_tower)
    model = attach_encoder(vlm, tower, config=GRID).eval()
    inputs = processor(text=[prompt] * 2, videos=[frames(13), frames(21, seed=1)])
    with torch.no_grad():
        model(**inputs)
    clips = sorted(clip.shape[0] for batch in tower.seen for clip in batch)
    assert clips == [5, 5, 8, 8, 8]
    pixels = inputs["pixel_values_videos"]
    starts = {0: 8, 8: 5, 13: 8, 21: 8, 29: 5}
    for batch in tower.seen:
        for clip in batch:
            start = next(i for i in range(len(pixels)) if torch.equal(pixels[i], clip[0]))
            assert starts[start] == len(clip)
            assert torch.equal(pixels[start : start + len(clip)], clip)


def test_a_batch_of_two_lengths_equals_each_alone(model, processor, frames, prompt):
    videos = [frames(21), frames(3, 48, 80, seed=1)]
    inputs = processor(text=[prompt] * 2, videos=videos)
    with torch.no_grad():
        together = model(**inputs).logits
        for row, video in enumerate(videos):
            alone = model(**processor(text=prompt, videos=[video])).logits[0]
            torch.testing.assert_close(together[row, -len(alone) :], alone, atol=2e-5, rtol=1e-4)


def test_cache_and_beams_give_what_plain_steps_give(model, processor, frames, prompt):
    inputs = processor(text=[prompt] * 2, videos=[frames(9), frames(4, seed=1)])
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    with torch.no_grad():
        expected = inputs["input_ids"]
        for _ in range(6):
            new = expected.shape[1] - inputs["input_ids"].shape[1]
            mask = torch.nn.functional.pad(inputs["attention_mask"], (0, new), value=1)
            logits = model(**{**inputs, "input_ids": expected, "attention_mask": mask}).logits[:, -1]
            logits[:, model.generation_config.eos_token_id or 3] = -torch.inf
            expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], 1)
        assert torch.equal(model.generate(**inputs, **settings), expected)
        beams = model.generate(**inputs, **settings, num_beams=2, num_return_sequences=2)
        for row, video in enumerate([frames(9), frames(4, seed=1)]):
            one = processor(text=prompt, videos=[video])
            alone = model.generate(**one, **settings, num_beams=2, num_return_sequences=2)
            assert torch.equal(beams[2 * row : 2 * row + 2, -6:], alone[:, -6:])


def test_saved_and_loaded_is_bit_exact(model, processor, frames, prompt, tmp_path):
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "liteframe_internvl"
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert type(loaded) is LiteFrameInternVLForConditionalGeneration
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    inputs = processor(text=[prompt] * 2, videos=[frames(9), frames(4, seed=1)])
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, loaded(**inputs).logits)
        settings = {"max_new_tokens": 8, "do_sample": False}
        assert torch.equal(model.generate(**inputs, **settings), loaded.generate(**inputs, **settings))
    assert AutoConfig.from_pretrained(tmp_path).vision_config.encoder_config == model.model.vision_tower.encoder.config


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_untied_head_survives_and_attention_can_be_chosen(tokenizer, vlm, encoder, tmp_path, attention):
    values = vlm.config.to_dict()
    values["tie_word_embeddings"] = values["text_config"]["tie_word_embeddings"] = False
    untied = type(vlm)(type(vlm.config)(**values))
    model = attach_encoder(untied, encoder)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation=attention)
    assert torch.equal(loaded.lm_head.weight, untied.lm_head.weight)
    assert not torch.equal(loaded.lm_head.weight, loaded.get_input_embeddings().weight)
    assert loaded.model.language_model.config._attn_implementation == attention


def test_the_loss_is_the_mean_over_labelled_tokens(model, processor, frames, prompt):
    inputs = processor(text=[prompt] * 2, videos=[frames(9), frames(4, seed=1)])
    labels = torch.where(inputs["attention_mask"] * (inputs["input_ids"] < 100) > 0, inputs["input_ids"], -100)
    labels[inputs["input_ids"] == model.config.image_token_id] = -100
    with torch.no_grad():
        output = model(**inputs, labels=labels)
    losses = [
        -output.logits[row, place - 1].double().log_softmax(-1)[label]
        for row in range(2)
        for place, label in enumerate(labels[row].tolist())
        if label != -100 and place > 0
    ]
    assert len(losses) > 10
    torch.testing.assert_close(output.loss.double(), torch.stack(losses).mean(), rtol=1e-5, atol=1e-6)


def test_a_checkpoint_without_the_encoder_is_refused(vlm, model, tmp_path):
    vlm.save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks .* weights"):
        LiteFrameInternVLForConditionalGeneration.from_pretrained(tmp_path)


def test_an_encoder_folder_loads_as_a_transformers_model(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    video = torch.randn(1, 8, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(video).last_hidden_state, encoder.for_inference()(video))
    with torch.no_grad():
        loaded.encoder.head.bias.add_(1)
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModel.from_pretrained(tmp_path / "again")
    assert torch.equal(again.encoder.head.bias, loaded.encoder.head.bias)


def test_an_encoder_in_memory_cannot_be_saved(vlm, tmp_path):
    model = attach_encoder(vlm, PooledTower(vlm.model.vision_tower), config=GRID)
    with pytest.raises(ValueError, match="InMemoryTower"):
        model.save_pretrained(tmp_path)


def test_an_encoder_of_another_width_is_refused(vlm):
    with pytest.raises(ValueError, match=r"64 channels.*takes 128"):
        attach_encoder(vlm, PooledTower(None), config=LiteFrameConfig(teacher_dim=64))


def test_mismatches_name_both_numbers(model, processor, frames, prompt):
    inputs = processor(text=[prompt] * 2, videos=[frames(8), frames(4, seed=1)])
    with pytest.raises(ValueError, match="12 image tokens, but the videos give 8 features"):
        model(**{**inputs, "pixel_values_videos": inputs["pixel_values_videos"][:8], "video_frames": [8]})
    with pytest.raises(ValueError, match="12 image tokens, but the videos give 0"):
        model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    with pytest.raises(ValueError, match=r"\[8, 4\] image tokens.*\[4, 8\]"):
        model(**{**inputs, "video_frames": [4, 8]})
    with pytest.raises(ValueError, match="sum to the 12 frames"):
        model(**{**inputs, "video_frames": [8, 8]})


def test_pixel_shuffle_order_and_rectangles(vlm):
    rows, cols, ch = torch.meshgrid(torch.arange(4), torch.arange(6), torch.arange(3), indexing="ij")
    out = pixel_shuffle(100 * rows + 10 * cols + ch)  # vectors of InternVL's "v2" order
    assert out.shape == (2, 3, 12)
    assert out[0, 0].tolist() == [0, 1, 2, 10, 11, 12, 100, 101, 102, 110, 111, 112]
    assert out[1, 2].tolist() == [240, 241, 242, 250, 251, 252, 340, 341, 342, 350, 351, 352]
    square = torch.randn(2, 8, 8, 5)
    assert torch.equal(pixel_shuffle(square), vlm.model.pixel_shuffle(square, scale_factor=0.5))
    with pytest.raises(ValueError, match="3x4"):
        pixel_shuffle(torch.zeros(3, 4, 1))


def test_rectangular_frames_keep_rows_and_columns_apart(model, processor, prompt):
    video = processor.video_text(processor.slots(4, 64, 128))
    ids = processor.tokenizer(prompt.replace("<video>", video), return_tensors="pt")
    assert (ids["input_ids"] == model.config.image_token_id).sum() == 8
    pixels = torch.randn(4, 3, 64, 128)
    with torch.no_grad():
        out = model.model.get_video_features(pixels).pooler_output[0]
        grid = model.model.vision_tower.encoder(pixels[None])[0, 0]
        for row in range(2):
            for col in range(4):
                cells = [grid[2 * row + r, 2 * col + c] for r in (0, 1) for c in (0, 1)]
                one = model.model.multi_modal_projector(torch.cat(cells))
                torch.testing.assert_close(out[4 * row + col], one, atol=1e-5, rtol=1e-4)


def test_a_video_of_one_frame_is_a_still_and_what_is_left_of_a_longer_one_is_not(model):
    pixels, features = torch.randn(9, 3, 64, 64), model.model.get_video_features  # clips of 8
    with torch.no_grad():
        (whole,), (one,) = (features(frames).pooler_output for frames in (pixels, pixels[8:]))
        (begun,), (left,) = (
            features(frames, final=False, first=first).pooler_output
            for frames, first in ((pixels[:8], True), (pixels[8:], False))
        )
        expected = model.model.project_grids([model.model.vision_tower.encoder.still(pixels[8:])[0]]).pooler_output[0]
        together = features(torch.cat([pixels[8:], pixels]), [1, 9]).pooler_output
    for found, wanted in ((one, expected), (torch.cat([begun, left]), whole), (together[0], one), (together[1], whole)):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert (one - left).abs().max() > 1e-2
