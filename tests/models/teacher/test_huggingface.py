"""Hugging Face teachers against transformers' own forward on tiny random weights."""

import json
import math

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from liteframe import load_teacher

MEAN = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
FAMILIES = {
    "vit": ("ViTConfig", "ViTModel", {}, 1),
    "dinov2": ("Dinov2Config", "Dinov2Model", {"mlp_ratio": 2}, 1),
    "dinov2_with_registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", {"num_register_tokens": 3}, 4),
    "dinov3_vit": ("DINOv3ViTConfig", "DINOv3ViTModel", {"num_register_tokens": 2}, 3),
    "clip_vision_model": ("CLIPVisionConfig", "CLIPVisionModel", {}, 1),
    "metaclip_2_vision_model": ("MetaClip2VisionConfig", "MetaClip2VisionModel", {}, 1),
    "tipsv2_vision_model": ("Tipsv2VisionConfig", "Tipsv2VisionModel", {"num_register_tokens": 2}, 3),
    "pixio": ("PixioConfig", "PixioModel", {"n_cls_tokens": 3}, 3),
    "ijepa": ("IJepaConfig", "IJepaModel", {}, 0),
    "siglip_vision_model": ("SiglipVisionConfig", "SiglipVisionModel", {}, 0),
    "smolvlm_vision": ("SmolVLMVisionConfig", "SmolVLMVisionTransformer", {}, 0),
    "idefics3_vision": ("Idefics3VisionConfig", "Idefics3VisionTransformer", {}, 0),
}


def test_whole_vlm_equals_its_own_image_features(vlm, vlm_folder):
    teacher = load_teacher(vlm_folder)
    images = torch.randn(6, 3, 32, 32)
    with torch.no_grad():
        theirs = vlm.get_image_features(images, vision_feature_layer=-1, vision_feature_select_strategy="default")
    features = teacher(images.unflatten(0, (2, 3)))
    tokens = theirs.last_hidden_state
    torch.testing.assert_close(features.patches, tokens[:, 1:].unflatten(1, (4, 4)).unflatten(0, (2, 3)))
    torch.testing.assert_close(features.query, tokens[:, 0].unflatten(0, (2, 3)))
    assert features.logits is None
    projected = teacher.projector(features.patches)
    assert projected.shape == (2, 3, 2, 2, 48)
    torch.testing.assert_close(projected.flatten(0, 1).flatten(1, 2), theirs.pooler_output)


def test_facts_come_from_the_checkpoint(vlm_folder):
    teacher = load_teacher(vlm_folder)
    assert (teacher.dim, teacher.patch_size, teacher.image_size) == (32, 8, 32)
    assert teacher.image_mean == (0.5, 0.4, 0.3)
    assert teacher.image_std == (0.2, 0.25, 0.3)
    assert teacher.resize == "squash"
    assert teacher.license is None


def test_the_language_model_is_not_kept(vlm, vlm_folder):
    teacher = load_teacher(vlm_folder)
    kept = sum(p.numel() for p in teacher.tower.parameters()) + sum(p.numel() for p in teacher.projector.parameters())
    parts = (vlm.model.vision_tower, vlm.model.multi_modal_projector)
    assert kept == sum(p.numel() for part in parts for p in part.parameters())


def test_tower_with_a_final_norm(make, tmp_path):
    model = make.vlm(use_mean_pooling=False, patch_size=8, image_size=32)
    teacher = load_teacher(make.save(model, tmp_path))
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        tokens = model.model.vision_tower(images).last_hidden_state
    torch.testing.assert_close(teacher(images[None]).patches[0], tokens[:, 1:].unflatten(1, (4, 4)))
    assert not isinstance(model.model.vision_tower.layernorm, torch.nn.Identity)


def test_rectangular_input_keeps_rows_and_columns(vlm, vlm_folder):
    teacher = load_teacher(vlm_folder)
    video = torch.randn(1, 2, 3, 24, 64)
    with torch.no_grad():
        tokens = vlm.model.vision_tower(video[0]).last_hidden_state
    patches = teacher(video).patches
    assert patches.shape == (1, 2, 3, 8, 32)
    torch.testing.assert_close(patches[0].flatten(1, 2), tokens[:, 1:])


def test_tower_folder_gives_the_same_as_the_whole_vlm(vlm, vlm_folder, make, tmp_path):
    tower = load_teacher(make.save(vlm.model.vision_tower, tmp_path))
    whole = load_teacher(vlm_folder)
    video = torch.randn(1, 2, 3, 32, 32)
    assert torch.equal(tower(video).patches, whole(video).patches)
    assert tower.projector is None
    assert tower.identity == whole.identity


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_families(family, size, make, tmp_path):
    config_name, model_name, extra, prefix = FAMILIES[family]
    model = getattr(transformers, model_name)(getattr(transformers, config_name)(**SMALL | extra)).eval()
    make.scramble(model)
    model.save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path, **MEAN)
    video = torch.randn(2, 2, 3, *size)
    flag = (
        {"interpolate_pos_encoding": True} if family.startswith(("siglip", "clip", "metaclip", "vit", "ijepa")) else {}
    )
    with torch.no_grad():
        tokens = model(pixel_values=video.flatten(0, 1), **flag).last_hidden_state
    features = teacher(video)
    assert features.patches.shape == (2, 2, size[0] // 8, size[1] // 8, 32)
    torch.testing.assert_close(features.patches.flatten(0, 1).flatten(1, 2), tokens[:, prefix:])
    if prefix:
        torch.testing.assert_close(features.query.flatten(0, 1), tokens[:, 0])
    elif hasattr(model, "head"):
        weights = model.head.attention(model.head.probe.expand(4, -1, -1), tokens, tokens, average_attn_weights=True)[1]
        torch.testing.assert_close(features.logits.flatten(0, 1).flatten(1).exp(), weights[:, 0].detach())
    else:
        torch.testing.assert_close(features.logits.exp().sum((2, 3)), torch.ones(2, 2))


def test_pretrained_false_needs_no_weights(vlm_folder, tmp_path):
    for file in ("config.json", "preprocessor_config.json"):
        (tmp_path / file).write_text((vlm_folder / file).read_text())
    teacher = load_teacher(tmp_path, pretrained=False)
    assert teacher(torch.randn(1, 1, 3, 32, 32)).patches.shape == (1, 1, 4, 4, 32)
    with pytest.raises(ValueError, match=r"weights of .* cannot be loaded"):
        load_teacher(tmp_path)


def test_incomplete_weights_are_named(vlm, make, tmp_path):
    make.save(vlm, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("vision_tower.encoder.layer.1.mlp.fc1.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack .*encoder.layer.1.mlp.fc1.weight \(1 in all\).*holds the whole model"):
        load_teacher(tmp_path)


def test_truncated_weights_are_named(vlm, make, tmp_path):
    make.save(vlm, tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_teacher(tmp_path)


def test_preprocessing_is_never_guessed(vlm, tmp_path):
    vlm.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no preprocessor_config.json.*image_mean"):
        load_teacher(tmp_path)
    nested = {"image_processor": {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "do_center_crop": True}}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    teacher = load_teacher(tmp_path)
    assert teacher.image_mean == (0.1, 0.2, 0.3)
    assert teacher.resize == "crop"


def test_license_is_the_model_cards(vlm, make, tmp_path):
    make.save(vlm, tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# a model\n")
    assert load_teacher(tmp_path).license == "mit"


def test_model_arguments_do_not_reach_the_hub(vlm_folder):
    teacher = load_teacher(vlm_folder, attn_implementation="eager", local_files_only=True)
    assert teacher.tower.model.config._attn_implementation == "eager"


def test_unsupported_requests(vlm_folder, make, tmp_path):
    with pytest.raises(ValueError, match="never runs code"):
        load_teacher(vlm_folder, trust_remote_code=True)
    with pytest.raises(ValueError, match="neither a folder"):
        load_teacher(tmp_path / "nothing")
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has model_type 'bert'; teachers can be internvl"):
        load_teacher(tmp_path, **MEAN)


def test_towers_that_cannot_teach_are_refused_with_the_reason(tmp_path):
    transformers.VJEPA2Config().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"'vjepa2'\) cannot be a teacher: its attention runs over the frames of a clip.*; take .*internvl",
    ):
        load_teacher(tmp_path, **MEAN)


def test_code_in_a_checkpoint_is_not_run(vlm_folder, tmp_path):
    config = json.loads((vlm_folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ValueError, match=r"'strange'.*-hf"):
        load_teacher(tmp_path, **MEAN)
    assert not (tmp_path / "ran").exists()


def test_bad_video_is_named(vlm_folder):
    teacher = load_teacher(vlm_folder)
    with pytest.raises(ValueError, match=r"\[B,T,3,H,W\]"):
        teacher(torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match=r"36x32.*multiples of its patch size 8"):
        teacher(torch.zeros(1, 1, 3, 36, 32))
    with pytest.raises(ValueError, match=r"normalized frames, got torch.uint8"):
        teacher(torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8))


def test_saliency_scale_matches_attention(vlm_folder):
    """The query is the cls token itself: WAP's logit of a patch is their product over sqrt(C)."""
    from liteframe import weighted_average_pool

    features = load_teacher(vlm_folder)(torch.randn(1, 4, 3, 32, 32))
    block = features.patches[0, :, :2, :2]
    weights = ((block * features.query[0, :, None, None]).sum(-1) / math.sqrt(32)).flatten().softmax(0)
    out = weighted_average_pool(features.patches, query=features.query)
    torch.testing.assert_close(out[0, 0, 0, 0], (weights[:, None] * block.reshape(16, 32)).sum(0))


def test_llava_onevision_s_tower_gives_what_its_projector_takes(tmp_path):
    """SigLIP's state before its last norm, without cls token; compared with transformers' own tower and projector."""
    from worlds.vlms import make_llava_onevision

    folder = make_llava_onevision(tmp_path / "llava")
    vlm = transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(folder).eval()
    teacher = load_teacher(str(folder))
    assert (teacher.dim, teacher.patch_size, teacher.image_size) == (32, 8, 76)
    video = torch.randn(2, 3, 3, 72, 80)
    features = teacher(video)
    assert features.query is None
    assert teacher.saliency == "received"
    with torch.no_grad():
        output = vlm.model.vision_tower(
            pixel_values=video.flatten(0, 1), output_hidden_states=True, interpolate_pos_encoding=True
        )
        expected = vlm.model.multi_modal_projector(output.hidden_states[-1])
    assert not torch.allclose(output.hidden_states[-1], output.last_hidden_state, atol=0.1)
    torch.testing.assert_close(features.patches.flatten(0, 1).flatten(1, 2), output.hidden_states[-1])
    torch.testing.assert_close(teacher.projector(features.patches).flatten(0, 1).flatten(1, 2), expected)
