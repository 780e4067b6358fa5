"""Attention received against an attention written out in float64, and against the libraries' own eager ones."""

import math

import pytest
import torch
import torch.nn.functional as functional
import transformers
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from liteframe import load_teacher
from liteframe.models.teacher import saliency
from liteframe.models.teacher.saliency import AttentionWatch, attention_received, head_mean_log_attention

HF = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "image_size": 32, "patch_size": 8, "vision_use_head": False,
}  # fmt: skip
MEAN = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}


@pytest.mark.parametrize("masked", [None, "bool", "added"])
@pytest.mark.parametrize("weights", [2**26, 40, 1])
def test_the_mean_over_heads_and_queries(masked, weights, monkeypatch):
    monkeypatch.setattr(saliency, "ATTENTION_WEIGHTS", weights)
    query, key = torch.randn(3, 4, 5, 6, dtype=torch.float64), torch.randn(3, 2, 5, 6, dtype=torch.float64)
    seen = torch.ones(3, 1, 5, 5, dtype=torch.bool)
    seen[1, :, :, 3:] = masked is None
    mask = None if masked is None else seen if masked == "bool" else torch.where(seen, 0.0, -math.inf).double()
    expected = torch.zeros(3, 5, dtype=torch.float64)
    for image in range(3):
        for head in range(4):
            for place in range(5):
                weight = [
                    math.exp(0.3 * query[image, head, place] @ key[image, head // 2, other])
                    * bool(seen[image, 0, 0, other])
                    for other in range(5)
                ]
                expected[image] += torch.tensor(weight, dtype=torch.float64) / sum(weight) / 20
    torch.testing.assert_close(attention_received(query, key, scale=0.3, mask=mask), expected, rtol=1e-12, atol=1e-12)
    single = attention_received(query.bfloat16(), key.bfloat16(), scale=0.3, mask=mask)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double().sum(1), torch.ones(3, dtype=torch.float64))


def test_head_mean_in_logs():
    scores = torch.randn(2, 3, 5)
    torch.testing.assert_close(head_mean_log_attention(scores).exp(), scores.softmax(-1).mean(1))


def test_a_siglip_s_last_block(make, tmp_path):
    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**HF)).eval()
    make.scramble(model)
    model.save_pretrained(tmp_path)
    video = torch.randn(1, 3, 3, 24, 40, dtype=torch.float64)
    eager = transformers.SiglipVisionModel.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float64
    ).eval()
    with torch.no_grad():
        attention = eager(video[0], interpolate_pos_encoding=True, output_attentions=True).attentions[-1]
    teacher = load_teacher(tmp_path, dtype=torch.float64, **MEAN)
    assert teacher.saliency == "received"
    received = teacher(video).logits
    assert received.dtype == torch.float64
    # Its eager softmax rounds to float32.
    torch.testing.assert_close(received[0].flatten(1).exp(), attention.mean((1, 2)), rtol=1e-6, atol=1e-7)
    # In single precision nothing changes but the last digits.
    single = load_teacher(tmp_path, **MEAN)(video.float()).logits
    torch.testing.assert_close(single, received.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_gap_224", "vit_pe_spatial_gigantic_patch14_448"])
def test_a_timm_vit_s_last_block(name, make):
    """Learned positions, and rotary ones that turn queries and keys."""
    teacher = load_teacher(
        f"timm/{name}", pretrained=False, dtype=torch.float64, embed_dim=32, depth=2, num_heads=4, img_size=56
    )
    make.scramble(teacher.tower)
    assert teacher.saliency == "received"
    p = teacher.patch_size
    video = torch.randn(2, 1, 3, 3 * p, 4 * p, dtype=torch.float64)
    received = teacher(video).logits
    attention = teacher.tower.watched.attn
    attention.fused_attn = False
    seen = []
    attention.attn_drop = nn.Identity()
    attention.attn_drop.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    with torch.no_grad():
        teacher.tower.model.forward_features(video.flatten(0, 1))
    torch.testing.assert_close(received[:, 0].flatten(1).exp(), seen[0].mean((1, 2)), rtol=1e-9, atol=1e-9)


def test_saliencies_that_can_be_asked_for(make, vlm_folder):
    teacher = load_teacher("timm/vit_base_patch16_siglip_224", pretrained=False, embed_dim=32, depth=1, num_heads=4)
    make.scramble(teacher.tower)
    video = torch.randn(1, 1, 3, 32, 48)
    logits = {}
    for name in ("probe", "received", "mean"):
        teacher.weigh_by(name)
        features = teacher(video)
        assert features.query is None
        logits[name] = features.logits
    assert logits["mean"] is None
    assert not torch.allclose(logits["probe"], logits["received"], atol=1e-2)
    with pytest.raises(ValueError, match=r"no saliency 'cls'; it has probe, received, mean"):
        teacher.weigh_by("cls")
    with_cls = load_teacher(vlm_folder, saliency="received")
    features = with_cls(torch.randn(1, 2, 3, 32, 32))
    assert features.query is None
    assert features.logits.exp().sum((2, 3)).max() < 1  # the cls token receives the rest


def test_a_tower_whose_attention_cannot_be_seen_is_an_error(make, tmp_path):
    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**HF)).eval()
    model.save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path, attn_implementation="eager", **MEAN)
    with pytest.raises(ValueError, match=r"attention received cannot be seen.*'sdpa'"):
        teacher(torch.randn(1, 1, 3, 32, 32))


def test_watching_ends_with_the_block_and_with_an_error():
    class Block(nn.Module):
        def forward(self, x, fail=False):
            x = functional.scaled_dot_product_attention(x, x, x)
            if fail:
                raise RuntimeError("in the block")
            return x

    block, x = Block(), torch.randn(2, 1, 3, 4)
    with AttentionWatch(block) as watch:
        block(x)
        functional.scaled_dot_product_attention(2 * x, x, x)  # of another block
    torch.testing.assert_close(watch.received().exp(), attention_received(x, x))
    with AttentionWatch(block) as watch, pytest.raises(RuntimeError, match="in the block"):
        block(x, fail=True)
    assert not block._forward_hooks
    assert not block._forward_pre_hooks
    assert not _get_current_function_mode_stack()
