"""What is loaded from where, and what is refused."""

import pytest
import torch
from transformers import AutoProcessor, InternVLForConditionalGeneration, InternVLProcessor, Qwen2Config

from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.vlm.attach import processor_for, with_encoder
from liteframe.models.vlm.internvl import LiteFrameInternVLProcessor
from liteframe.models.vlm.load import load_video_llm
from liteframe.toyworld.model import build_processor


@pytest.fixture
def folder(vlm, encoder, tokenizer, tmp_path):
    vlm.save_pretrained(tmp_path / "vlm")
    build_processor(tokenizer).save_pretrained(tmp_path / "vlm")
    encoder.save_pretrained(tmp_path / "encoder")
    return tmp_path


def test_an_internvl_alone_stays_transformers_own(folder):
    model, processor = load_video_llm(folder / "vlm")
    assert type(model) is InternVLForConditionalGeneration
    assert type(processor) is InternVLProcessor
    assert not model.training


def test_an_encoder_is_attached_and_the_whole_can_be_saved(folder, frames, prompt):
    model, processor = load_video_llm(folder / "vlm", encoder=folder / "encoder")
    assert (processor.frames_per_slot, processor.pixels_per_token) == (4, 32)
    model.save_pretrained(folder / "both")
    processor.save_pretrained(folder / "both")
    again, same = load_video_llm(folder / "both")
    assert type(AutoProcessor.from_pretrained(folder / "both")) is LiteFrameInternVLProcessor
    with torch.no_grad():
        first = model(**processor(text=prompt, videos=[frames(6)])).logits
        assert torch.equal(again(**same(text=prompt, videos=[frames(6)])).logits, first)
    with pytest.raises(ValueError, match="already has a LiteFrame encoder"):
        load_video_llm(folder / "both", encoder=folder / "encoder")


def test_the_encoder_takes_the_dtype_of_the_language_model(folder):
    model, _ = load_video_llm(folder / "vlm", encoder=folder / "encoder", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_other_preprocessing_is_refused(vlm, encoder, tokenizer):
    base = build_processor(tokenizer)
    base.video_processor.image_mean = [0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match=r"mean \(0.5, 0.5, 0.5\)"):
        processor_for(base, with_encoder(vlm, encoder).config)
    base = build_processor(tokenizer)
    base.video_processor.size = {"height": 128, "width": 128}
    with pytest.raises(ValueError, match=r"size \(128, 128\).*\(64, 64\)"):
        processor_for(base, with_encoder(vlm, encoder).config)


def test_other_models_and_pickled_adapters_are_refused(folder):
    Qwen2Config().save_pretrained(folder / "qwen")
    with pytest.raises(ValueError, match="'qwen2' model"):
        load_video_llm(folder / "qwen")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors does not exist"):
        load_video_llm(folder / "vlm", encoder=folder / "encoder", adapter=folder / "adapter")


def test_the_encoder_itself_is_as_good_as_its_folder(folder, vlm):
    loaded = LiteFrameEncoder.from_pretrained(folder / "encoder")
    model, _ = load_video_llm(folder / "vlm", encoder=loaded, dtype=torch.bfloat16)
    placed = model.model.vision_tower.encoder.state_dict()
    assert all(torch.equal(placed[name], weight.bfloat16()) for name, weight in loaded.state_dict().items())
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}  # the caller's stays as it was
