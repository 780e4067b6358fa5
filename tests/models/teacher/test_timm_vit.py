"""timm teachers against timm's own forward on tiny random weights."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from liteframe import load_teacher

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 4}
# name, its prefix tokens, saliency
MODELS = {
    "vit_intern300m_patch14_448": (1, "query"),
    "vit_small_patch14_reg4_dinov2": (5, "query"),
    "vit_base_patch16_siglip_224": (0, "logits"),
    "vit_base_patch16_siglip_gap_224": (0, "logits"),
    "vit_small_patch16_dinov3": (5, "query"),
    "vit_base_patch16_clip_224": (1, "query"),
    "vit_base_patch14_reg1_tipsv2": (2, "query"),
    "vit_pe_core_base_patch16_224": (1, "query"),
    "vit_pe_core_gigantic_patch14_448": (0, "logits"),
    "naflexvit_base_patch16_siglip": (0, "logits"),
    "naflexvit_so400m_patch16_radio_v4": (10, "query"),
    "qwen3_vit_88m": (0, "logits"),
    "qwen3_vit_88m_enc": (0, "logits"),
}


@pytest.mark.parametrize("name", MODELS)
def test_equals_forward_features(name, make):
    prefix, saliency = MODELS[name]
    teacher = load_teacher(f"timm/{name}", pretrained=False, **TINY)
    make.scramble(teacher.tower)
    p = teacher.patch_size
    dynamic = {} if name.startswith(("naflex", "qwen3")) else {"dynamic_img_size": True}
    own = timm.create_model(
        name, pretrained=False, **({} if name.endswith("_enc") else {"num_classes": 0}), **dynamic, **TINY
    )
    own = getattr(own, "encoder", own).eval()
    own.load_state_dict(teacher.tower.model.state_dict())
    video = torch.randn(2, 2, 3, 3 * p, 4 * p)
    with torch.no_grad():
        tokens = own.forward_features(video.flatten(0, 1))
        if tokens.ndim == 4:
            assert tokens.shape[1:3] == (3, 4)
            tokens = tokens.flatten(1, 2)
    features = teacher(video)
    assert features.patches.shape == (2, 2, 3, 4, 32)
    torch.testing.assert_close(features.patches.flatten(0, 1).flatten(1, 2), tokens[:, prefix:])
    assert (features.query is not None, features.logits is not None) == (saliency == "query", saliency == "logits")
    if saliency == "query":
        torch.testing.assert_close(features.query.flatten(0, 1), tokens[:, 0])


def test_gemma4_sees_the_pixels_that_timm_gives_it(make):
    """Frames come from -1 to 1, timm's model takes 0 to 1."""
    tiny = TINY | {"head_dim": 8, "intermediate_size": 48}
    teacher = load_teacher("timm/gemma4_vit_167m", pretrained=False, **tiny)
    make.scramble(teacher.tower)
    own = timm.create_model("gemma4_vit_167m_enc", pretrained=False, global_pool="none", **tiny).eval()
    own.load_state_dict(teacher.tower.model.state_dict())
    pixels = torch.rand(2, 3, 64, 80)
    with torch.no_grad():
        tokens = own(pixels)
    assert teacher.image_mean == teacher.image_std == (0.5, 0.5, 0.5)
    features = teacher(((pixels - 0.5) / 0.5)[None])
    torch.testing.assert_close(features.patches[0].flatten(1, 2), tokens, rtol=1e-4, atol=1e-4)


def test_siglip_logits_are_the_pooling_heads_attention(make):
    teacher = load_teacher("timm/vit_base_patch16_siglip_224", pretrained=False, **TINY)
    make.scramble(teacher.tower)
    pool = teacher.tower.model.attn_pool
    seen = []
    video = torch.randn(1, 2, 3, 32, 48)
    # Its value projection set to zero except for one token shows, one by one, how much attention each token gets.
    with torch.no_grad():
        tokens = teacher.tower.model.forward_features(video[0])
        pool.fused_attn = False
        pool.attn_drop = torch.nn.Identity()
        k, v = pool.kv(tokens).chunk(2, -1)
        q = pool.q(pool.latent)
        for h in range(4):
            part = slice(8 * h, 8 * h + 8)
            seen.append((q[0, :, part] @ k[..., part].mT / 8**0.5).softmax(-1)[:, 0])
    torch.testing.assert_close(teacher(video).logits[0].flatten(1).exp(), torch.stack(seen).mean(0))


def test_internvit_facts():
    teacher = load_teacher("timm/vit_intern300m_patch14_448", pretrained=False, depth=1)
    assert (teacher.dim, teacher.patch_size, teacher.image_size) == (1024, 14, 448)
    assert teacher.image_mean == pytest.approx((0.485, 0.456, 0.406))
    assert teacher.license is None  # random weights have none
    assert isinstance(teacher.tower.model.norm, torch.nn.Identity)


def test_full_size_internvit_has_the_papers_parameters():
    with torch.device("meta"):
        teacher = load_teacher("timm/vit_intern300m_patch14_448", pretrained=False)
    assert sum(p.numel() for p in teacher.tower.parameters()) == 304_012_288


def test_unknown_and_unsuitable_names():
    with pytest.raises(ValueError, match=r"no model named 'vit_intern301m'.*vit_intern300m_patch14_448"):
        load_teacher("timm/vit_intern301m", pretrained=False)
    with pytest.raises(ValueError, match="timm/resnet50 is not a plain ViT"):
        load_teacher("timm/resnet50", pretrained=False)


def test_pretrained_weights_come_from_safetensors(tmp_path, monkeypatch):
    random = load_teacher("timm/vit_intern300m_patch14_448", pretrained=False, **TINY)
    save_file(random.tower.model.state_dict(), tmp_path / "model.safetensors")
    asked = []

    def download(repo_id, filename, **_):
        asked.append((repo_id, filename))
        return str(tmp_path / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    teacher = load_teacher("timm/vit_intern300m_patch14_448", **TINY)
    assert asked == [("timm/vit_intern300m_patch14_448.ogvl_dist", "model.safetensors")]
    assert teacher.identity == random.identity
    assert teacher.license == "mit"
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"cannot be built: .*model.safetensors.*hub or its local cache"):
        load_teacher("timm/vit_intern300m_patch14_448", **TINY)
