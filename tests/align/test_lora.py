"""LoRA touches the language model and nothing else."""

import copy
import json
import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from liteframe.align.lora import ENCODER, LoraSettings, adapted_layers, add_lora, describe, language_model_layers
from liteframe.models.vlm.adapter import frozen_digest
from liteframe.models.vlm.family import INTERNVL
from liteframe.training.schedule import OptimizerSettings, configure_optimizer, parameter_groups


def test_every_layer_of_the_language_model_and_no_other(model):
    names = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    attention, mlp = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
    expected = {f"model.language_model.layers.{i}.self_attn.{name}" for i in range(4) for name in attention}
    expected |= {f"model.language_model.layers.{i}.mlp.{name}" for i in range(4) for name in mlp}
    adapted = add_lora(model, LoraSettings(rank=2))
    assert expected < names
    assert set(adapted_layers(adapted)) == expected
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * len(expected)
    assert all(".language_model." in name and ".lora_" in name for name in trained)
    text = describe(adapted)
    assert "28 layers" in text
    assert "4 down_proj" in text
    assert "projector: frozen; encoder: frozen" in text


def test_the_tower_has_the_same_names_so_a_suffix_list_would_hit_it(vlm):
    adapted = get_peft_model(vlm, LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj"]))
    assert any("vision_tower" in name for name in adapted_layers(adapted))
    assert not any("vision_tower" in name for name in language_model_layers(vlm, INTERNVL.lora_layers))


def test_projector_and_encoder_are_trained_when_asked(model):
    adapted = add_lora(model, LoraSettings(), train_projector=True, train_encoder=True)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    for part in ("multi_modal_projector.modules_to_save", "vision_tower.modules_to_save"):
        assert any(part in name for name in trained)
    assert "projector: trained; encoder: trained" in describe(adapted)
    assert not any("original_module" in name for name in trained)


def test_muon_takes_the_blocks_of_a_trained_encoder_and_nothing_of_lora(model):
    adapted = add_lora(model, LoraSettings(), train_projector=True, train_encoder=True)
    names = {id(parameter): name for name, parameter in adapted.named_parameters()}
    settings = OptimizerSettings(kind="muon", lr=1e-3, muon_lr=4e-3)
    groups = parameter_groups(adapted, settings, {ENCODER: 0.2})
    blocks = re.compile(r"vision_tower\.modules_to_save\.default\..*blocks\.\d+\..*(qkv|proj|fc1|fc2)\.weight")
    for group in groups:
        muon = [bool(blocks.fullmatch(names[id(p)].removeprefix("base_model.model.model."))) for p in group["params"]]
        assert set(muon) == {"pieces" in group}
        assert group["lr"] in ([pytest.approx(8e-4)] if muon[0] else [1e-3, pytest.approx(2e-4)])
    with pytest.raises(ValueError, match="kind=muon: nothing here is for Muon"):
        configure_optimizer(nn.ModuleDict({"lora_A": nn.Linear(8, 2, bias=False)}), settings, 10)


def test_what_is_trained_is_float32_in_a_bfloat16_model(model):
    adapted = add_lora(model.to(torch.bfloat16), LoraSettings(), train_projector=True)
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in adapted.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_a_language_model_without_these_layers_is_refused():
    other = nn.ModuleDict({"language_model": nn.ModuleDict({"wqkv": nn.Linear(2, 2)}), "q_proj": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match="its linear layers are wqkv"):
        language_model_layers(other, INTERNVL.lora_layers)


def test_settings_out_of_range_are_refused():
    for bad in ({"rank": 0}, {"alpha": 0}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match="rank >= 1"):
            LoraSettings(**bad)


def test_the_digest_sees_one_bit_of_a_frozen_weight_and_no_trained_one(model):
    adapted = add_lora(model, LoraSettings())
    before = frozen_digest(adapted)
    with torch.no_grad():
        next(p for p in adapted.parameters() if p.requires_grad).add_(1)
    assert frozen_digest(adapted) == before
    with torch.no_grad():
        weight = adapted.get_base_model().model.multi_modal_projector.linear_2.bias
        weight[-1] = torch.nextafter(weight[-1], torch.tensor(9.0))
    assert frozen_digest(adapted) != before


def test_an_adapter_to_start_from_must_make_its_update_in_the_same_way(model, tmp_path):
    first = add_lora(copy.deepcopy(model), LoraSettings(rank=2, alpha=4, dropout=0.1))
    first.save_pretrained(tmp_path, save_embedding_layers=False)
    config, held = tmp_path / "adapter_config.json", json.loads((tmp_path / "adapter_config.json").read_text())
    # Dropout is no part of the update, where it came from is no matter, and what is empty is not in use.
    config.write_text(json.dumps(held | {"peft_version": "0.1", "of_tomorrow": None, "rank_pattern": None}))
    again = add_lora(copy.deepcopy(model), LoraSettings(rank=2, alpha=4, dropout=0.3), start_from=tmp_path)
    assert {m.p for name, m in again.named_modules() if name.endswith("lora_dropout.default")} == {0.3}
    for change, words in (
        ({"lora_alpha": 32}, r"lora\.alpha is 32 there and 4 here"),
        ({"r": 8}, r"lora\.rank is 8 there and 2 here"),
        ({"use_rslora": True}, "use_rslora is True there and False here"),
        ({"use_dora": True}, "use_dora is True"),
        ({"alpha_pattern": {"q_proj": 16}}, "alpha_pattern is .'q_proj': 16. there"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa' there"),
        ({"of_tomorrow": "on"}, "of_tomorrow is 'on' there and None here"),
    ):
        config.write_text(json.dumps(held | change))
        with pytest.raises(ValueError, match=words):
            add_lora(copy.deepcopy(model), LoraSettings(rank=2, alpha=4), start_from=tmp_path)
