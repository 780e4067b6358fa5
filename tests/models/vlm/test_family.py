"""Each family's record fits the classes it names and a checkpoint of transformers; features find their places."""

import pytest
import torch
from transformers import AutoProcessor
from worlds.vlms import make_internvl, make_llava_onevision, make_qwen2_5_vl, make_qwen3_5, make_qwen3_vl

from liteframe.models.vlm.family import FAMILIES, OURS, family_of
from liteframe.models.vlm.placeholders import place_features
from liteframe.models.vlm.processor import grid_slots

MAKERS = {
    "internvl": make_internvl,
    "llava_onevision": make_llava_onevision,
    "qwen2_5_vl": make_qwen2_5_vl,
    "qwen3_vl": make_qwen3_vl,
    "qwen3_5": make_qwen3_5,
}


@pytest.fixture(params=FAMILIES, scope="module")
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def checkpoint(family, tmp_path_factory):
    return MAKERS[family.model_type](tmp_path_factory.mktemp(family.model_type) / "vlm")


def test_a_record_and_its_classes_agree(family):
    assert family.hf_class.config_class.model_type == family.model_type
    assert family.config_class.model_type == OURS + family.model_type
    assert family.model_class.config_class is family.generation_class.config_class is family.config_class
    assert {family_of(family.model_type).model_type, family_of(OURS + family.model_type).model_type} == {
        family.model_type
    }
    modules = {c.__module__ for c in (family.config_class, family.model_class, family.processor_class)}
    assert modules == {family.generation_class.__module__}  # one file a family, which exports take along


def test_another_family_is_named():
    with pytest.raises(ValueError, match=r"'liteframe_qwen2' model is of no known family; expected .*internvl"):
        family_of("liteframe_qwen2")


def test_a_teachers_half_is_the_checkpoint_without_its_language_model(family, checkpoint):
    vlm = family.hf_class.from_pretrained(checkpoint)
    half, report = family.teacher_half.from_pretrained(checkpoint, output_loading_info=True)
    assert not report["missing_keys"]
    parts = family.parts(vlm)
    for part, own in ((parts.tower, half.tower), (parts.projector, half.projector)):
        expected, loaded = part.state_dict(), own.state_dict()
        assert expected.keys() == loaded.keys()
        assert all(torch.equal(loaded[key], weight) for key, weight in expected.items())
    assert not any("language_model" in name or "lm_head" in name for name, _ in half.named_parameters())
    everything = {p.data_ptr() for part in parts[:4] for p in part.parameters()}
    everything |= {p.data_ptr() for p in parts.own.values()}
    assert everything == {p.data_ptr() for p in vlm.parameters()}


def test_prompts_hold_the_tokens_of_their_slots(family, checkpoint):
    base = AutoProcessor.from_pretrained(checkpoint)
    processor = family.processor_class(base.tokenizer, base.video_processor)
    assert processor.image_token == family.image_token
    ends = processor.image_text(0).count(family.image_token)  # of what ends a video, if anything does
    slots = [*grid_slots(6, 4, 3), (6, 6, 0), (7, 9, 5)]
    assert slots[:2] == [(0, 3, 3), (4, 5, 3)]
    assert processor.video_text(slots).count(family.image_token) == 3 + 3 + 5 + ends
    assert processor.image_text(4).count(family.image_token) == 4 + ends


def test_a_teachers_prompt_holds_the_tokens_of_slots_of_any_frames(family, checkpoint):
    processor = AutoProcessor.from_pretrained(checkpoint)
    text = family.video_text(processor, [(0, 0, 3), (1, 1, 0), (2, 5, 4)])
    images = [f"<img>{processor.image_token * count}</img>" for count in (3, 4)]
    seen = [f"<|vision_start|>{processor.video_token * count}<|vision_end|>" for count in (3, 4, 7)]
    timed = f"<0.0 seconds>{seen[0]}<3.5 seconds>{seen[1]}"
    assert (
        text
        == {
            "internvl": f"Frame1: {images[0]}\nFrame3-6: {images[1]}",
            "llava_onevision": processor.video_token * (3 + 4 + 1),
            "qwen2_5_vl": seen[2],
            "qwen3_vl": timed,
            "qwen3_5": timed,
        }[family.model_type]
    )
    told = family.video_text(processor, [(0, 0, 3), (1, 1, 0), (2, 5, 4)], [(0.5, 0.5), (1.0, 1.0), (1.5, 3.0)])
    assert told == text.replace("<0.0 s", "<0.5 s").replace("<3.5 s", "<2.2 s")


def test_features_stand_where_their_placeholders_are():
    ids = torch.tensor([[1, 9, 9, 2], [9, 3, 9, 9]])
    embeddings = torch.zeros(2, 4, 3, dtype=torch.bfloat16)
    features = [torch.full((2, 3), 1.0), torch.full((3, 3), 2.0)]
    placed = place_features(embeddings, ids, 9, features)
    assert placed.dtype == torch.bfloat16
    assert placed[..., 0].tolist() == [[0, 1, 1, 0], [2, 0, 2, 2]]
    assert place_features(embeddings, torch.ones_like(ids), 9, []) is embeddings
    with pytest.raises(ValueError, match=r"5 image tokens.*give 4 features"):
        place_features(embeddings, ids, 9, [torch.ones(4, 3)])
    with pytest.raises(ValueError, match="does not cut the videos"):
        place_features(embeddings, ids, 9, [torch.ones(3, 3), torch.ones(2, 3)])
    with pytest.raises(ValueError, match=r"5 image tokens.*give 0 features"):
        place_features(embeddings, ids, 9, [])
