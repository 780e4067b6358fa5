"""configs/lma/internvl3_8b.yaml with the true InternVL3-8B on torch's meta device: shapes and names, no memory."""

import pytest
import torch
import yaml
from safetensors import safe_open
from transformers import InternVLForConditionalGeneration
from worlds import ROOT

from liteframe.align.lora import LoraSettings, adapted_layers, add_lora
from liteframe.bench.systems import internvl3_8b_config
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.vlm.attach import attach_encoder

# Qwen2.5-7B: input and output channels of each projection of a block.
PROJECTIONS = {
    "self_attn.q_proj": (3584, 3584), "self_attn.k_proj": (3584, 512), "self_attn.v_proj": (3584, 512),
    "self_attn.o_proj": (3584, 3584), "mlp.gate_proj": (3584, 18944), "mlp.up_proj": (3584, 18944),
    "mlp.down_proj": (18944, 3584),
}  # fmt: skip


@pytest.fixture(scope="module")
def settings():
    return yaml.safe_load((ROOT / "configs/lma/internvl3_8b.yaml").read_text())


@pytest.fixture(scope="module")
def vlm():
    with torch.device("meta"):
        return InternVLForConditionalGeneration(internvl3_8b_config())


@pytest.fixture(scope="module")
def adapted(settings):
    with torch.device("meta"):
        vlm = InternVLForConditionalGeneration(internvl3_8b_config())
        model = attach_encoder(vlm, LiteFrameEncoder(LiteFrameConfig()))
        keys = ("train_projector", "train_encoder")
        return add_lora(
            model, LoraSettings(**settings["model"]["lora"]), **{key: settings["model"][key] for key in keys}
        )


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_the_published_model_has_these_sizes(vlm):
    """304.01M and 7.94B as published; Qwen2.5-7B has 7,615,616,512 with 152,064 words, this one 151,674."""
    assert parameters(vlm.model.vision_tower) == 304_012_288
    language = parameters(vlm.model.language_model) + parameters(vlm.lm_head)
    assert language == 7_615_616_512 - 2 * (152_064 - 151_674) * 3584
    projector = 2 * 4096 + (4096 * 3584 + 3584) + (3584 * 3584 + 3584)
    assert parameters(vlm.model.multi_modal_projector) == projector
    assert parameters(vlm) == 304_012_288 + projector + language == 7_944_373_760


def test_lora_sits_on_28_times_7_projections_and_nowhere_else(adapted):
    expected = {f"model.language_model.layers.{i}.{name}" for i in range(28) for name in PROJECTIONS}
    assert set(adapted_layers(adapted)) == expected
    assert len(expected) == 28 * 7
    modules = dict(adapted.get_base_model().named_modules())
    for i in (0, 13, 27):
        for name, (inside, outside) in PROJECTIONS.items():
            base = modules[f"model.language_model.layers.{i}.{name}"].base_layer
            assert (base.in_features, base.out_features) == (inside, outside)


def test_trained_parameters_are_the_arithmetic(adapted, settings):
    rank = settings["model"]["lora"]["rank"]
    expected = 28 * sum(rank * (inside + outside) for inside, outside in PROJECTIONS.values())
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == expected == 10_092_544
    assert parameters(adapted) - expected == 7_944_373_760 - 304_012_288 + 87_146_752
    assert {p.dtype for p in trained} == {torch.float32}


def published_names(vision_layers, text_layers):
    """Names of the published -hf checkpoints, written down here by rule."""
    both = ("weight", "bias")
    names = {"vision_tower.embeddings.cls_token", "vision_tower.embeddings.position_embeddings"}
    names |= {f"vision_tower.embeddings.patch_embeddings.projection.{kind}" for kind in both}
    linears = [f"attention.{x}" for x in ("q_proj", "k_proj", "v_proj", "projection_layer")]
    for i in range(vision_layers):
        layer = f"vision_tower.encoder.layer.{i}"
        modules = (*linears, "mlp.fc1", "mlp.fc2", "layernorm_before", "layernorm_after")
        names |= {f"{layer}.{x}.{kind}" for x in modules for kind in both}
        names |= {f"{layer}.lambda_1", f"{layer}.lambda_2"}
    names |= {f"multi_modal_projector.{x}.{kind}" for x in ("layer_norm", "linear_1", "linear_2") for kind in both}
    for i in range(text_layers):
        layer = f"language_model.model.layers.{i}"
        names |= {f"{layer}.{x}.weight" for x in (*PROJECTIONS, "input_layernorm", "post_attention_layernorm")}
        names |= {f"{layer}.self_attn.{x}_proj.bias" for x in "qkv"}
    return names | {f"language_model.{x}.weight" for x in ("model.embed_tokens", "model.norm", "lm_head")}


def test_weights_on_disk_have_the_published_names(vlm, tmp_path):
    """A small model of these classes is written under the published names and read back from them."""
    small = internvl3_8b_config()
    small.vision_config.num_hidden_layers = small.text_config.num_hidden_layers = 2
    small.text_config.layer_types = small.text_config.layer_types[:2]
    for name, value in {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}.items():
        setattr(small.vision_config, name, value)
        setattr(small.text_config, name, value)
    small.vision_config.image_size = [56, 56]
    small.text_config.num_key_value_heads, small.text_config.vocab_size = 1, 64
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(small)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == published_names(2, 2)
    again, info = InternVLForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert len(vlm.state_dict()) == len(published_names(24, 28))


def test_the_text_of_512_frames_fits(settings):
    """The longest draw: 128 slots of 64 image tokens and a line of text each."""
    limit = internvl3_8b_config().text_config.max_position_embeddings
    assert max(settings["data"]["frames"]) == 512
    assert limit > 128 * (64 + 16) + 2048


def test_it_is_the_paper_s_recipe(settings):
    assert settings["model"]["lora"] == {"rank": 4, "alpha": 8, "dropout": 0.05}
    assert settings["model"]["optimizer"]["lr"] == 4e-5
    assert settings["data"]["batch_size"] == 128
    assert (settings["data"]["frames"], settings["data"]["fps"]) == ([128, 256, 512], [1.0, 4.0])
    assert settings["trainer"]["max_steps"] == 25000
