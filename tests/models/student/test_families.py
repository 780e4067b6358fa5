"""A student of its teacher's own size repeats the teacher's patch features, whatever the family; others are refused.

What a student cannot do as its teacher does is named, and taken out of the teacher's own network here, by hooks that
know nothing of the mapping of weights: registers leave before the first block, rotations become the identity, the
student's cls token stands before the patches of a teacher that has none, norms after the last block are left out,
RMSNorm becomes LayerNorm, and where the teacher's MLPs are gated, MLPs of both give nothing.
"""

from dataclasses import replace

import pytest
import timm
import torch
import transformers
from torch import nn

from liteframe import LiteFrameConfig, LiteFrameEncoder, load_teacher
from liteframe.models.student.weight_selection import initialize_student, select_from_vit, select_weights
from liteframe.models.teacher.hf_vit import VIT_CLASSES
from liteframe.models.teacher.vit_weights import vit_weights

MEAN = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
TIMM = {"embed_dim": 32, "depth": 2, "num_heads": 4}
HF = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
CLS, REGISTERS, ROTARY, TANH = "no cls token", "register tokens take part", "rotary", "approximation"
GATED, RMS = "MLPs are gated", "RMSNorm"

# name: extra arguments, differences
ACCEPTED_TIMM = {
    "vit_small_patch16_224": ({}, []),
    "vit_intern300m_patch14_448": ({}, []),
    "vit_base_patch16_224": ({"reg_tokens": 2}, [REGISTERS]),  # which have positions
    "vit_base_patch16_siglip_224": ({}, [CLS]),
    "vit_base_patch16_siglip_gap_224": ({"act_layer": "gelu_tanh"}, [TANH, CLS]),
    "vit_small_patch14_reg4_dinov2": ({}, [REGISTERS]),
    "vit_small_patch16_dinov3": ({}, [REGISTERS, ROTARY]),
    "eva02_tiny_patch14_224": ({"swiglu_mlp": False, "qkv_fused": False}, [ROTARY]),
    "beit3_base_patch16_224": ({"scale_attn_norm": False, "scale_mlp_norm": False}, []),
    "vit_base_patch14_reg1_tipsv2": ({}, [REGISTERS]),
    "naflexvit_base_patch16_siglip": ({"pos_embed_grid_size": (4, 4)}, [TANH, CLS]),
    "naflexvit_so400m_patch16_radio_v4": ({"pos_embed_grid_size": (4, 4)}, [REGISTERS]),
    "qwen3_vit_88m": ({"pos_embed_grid_size": 4}, [TANH, CLS, ROTARY]),
    "vit_small_patch14_dinov2": ({"mlp_layer": timm.layers.SwiGLU}, [GATED]),
}
# model_type: class, extra arguments, differences
ACCEPTED_HF = {
    "vit": ("ViT", {}, []),
    "internvl": ("InternVLVision", {"attention_bias": True, "use_mean_pooling": False}, []),
    "dinov2": ("Dinov2", {"mlp_ratio": 2}, []),
    "dinov2_with_registers": ("Dinov2WithRegisters", {"num_register_tokens": 3, "mlp_ratio": 2}, [REGISTERS]),
    "dinov3_vit": ("DINOv3ViT", {"num_register_tokens": 2}, [REGISTERS, ROTARY]),
    "siglip_vision_model": ("SiglipVision", {}, [TANH, CLS]),
    "siglip2_vision_model": ("Siglip2Vision", {"num_patches": 16}, [TANH, CLS]),
    "tipsv2_vision_model": ("Tipsv2Vision", {"mlp_ratio": 1.5}, [REGISTERS]),
    "ijepa": ("IJepa", {}, [CLS]),
    "radio": ("Radio", {"max_img_size": 32, "num_cls_tokens": 2, "num_registers": 1, "mlp_ratio": 1.5}, [REGISTERS]),
    "dinov2 with swiglu": ("Dinov2", {"use_swiglu_ffn": True}, [GATED]),
    "internvl with rms norm": (
        "InternVLVision",
        {"norm_type": "rms_norm", "attention_bias": True, "use_mean_pooling": True},
        [RMS],
    ),
    "siglip without head": ("SiglipVision", {"vision_use_head": False, "hidden_act": "gelu"}, [CLS]),
}
REFUSED_TIMM = {
    "vit_base_patch16_clip_224": ({}, r"norm_pre.weight\), a student not.*init: random"),
    "vit_base_patch16_clip_quickgelu_224": ({}, r"norm_pre.weight\), a student not.*init: random"),
    "vit_pe_core_base_patch16_224": ({}, r"norm_pre.weight\), a student not"),
    "vit_small_patch16_224": ({"qk_norm": True}, r"blocks.0.attn.q_norm.weight has no counterpart"),
    "vit_base_patch16_224": ({"act_layer": "quick_gelu"}, r"another activation \(QuickGELU.*init: random"),
    "eva02_tiny_patch14_224": ({}, r"another activation|has no counterpart|is \[32, \d+\], expected"),
    "vit_base_patch16_rpn_224": ({}, "ResPostBlock is not a plain pre-norm ViT block"),
    "beit3_base_patch16_224": ({}, r"blocks.0.attn.norm.weight has no counterpart"),
}
REFUSED_HF = {
    "clip_vision_model": ("CLIPVision", {}, r"pre_layrnorm.weight\), a student not.*init: random"),
    "clip with erf": ("CLIPVision", {"hidden_act": "gelu"}, r"pre_layrnorm.weight\), a student not.*init: random"),
    "vit with quick_gelu": ("ViT", {"hidden_act": "quick_gelu"}, r"another activation \(QuickGELU.*init: random"),
    "vit with relu": ("ViT", {"hidden_act": "relu"}, r"another activation \(ReLU"),
    "internvl with qk norm": ("InternVLVision", {"use_qk_norm": True}, r"attention.q_norm.weight has no counterpart"),
    "gemma4": ("Gemma4Vision", {"num_key_value_heads": 4, "head_dim": 8}, "has no counterpart"),
}


def timm_teacher(name, extra, make):
    teacher = load_teacher(f"timm/{name}", pretrained=False, **TIMM | extra)
    make.scramble(teacher.tower)
    return teacher


def hf_teacher(name, extra, make, folder):
    config = getattr(transformers, f"{name}Config")(**HF | extra)
    model = getattr(transformers, f"{name}Model")(config).eval()
    make.scramble(model)
    model.save_pretrained(folder)
    return load_teacher(folder, **({} if name in ("Radio", "Gemma4Vision") else MEAN))


def first_tokens(student, cls, registers):
    """A hook that makes the tokens before the first block, [M,N,C] alone or first of a tuple, those of the student."""

    def change(tokens):
        if not cls:
            return torch.cat([student.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return torch.cat([tokens[:, :1], tokens[:, 1 + registers :]], dim=1)

    return lambda module, _, out: (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)


def qwen3_as_the_student_sees(model, student):
    """The network of Qwen's ViT with the student's tokens, attention and activation."""

    def run(images):
        x = model.patch_embed(images).flatten(1, 2) + model.pos_embed
        x = torch.cat([student.cls_token.expand(len(x), -1, -1), x], dim=1)
        for block in model.blocks:
            block.mlp.act = nn.GELU()
            x = block(x, rope=None)
        return x[:, 1:]

    return run


def timm_as_the_student_sees(model, student):
    """The network of a timm ViT with the student's tokens, attention and activation, without its last norm."""
    if hasattr(model, "merger"):
        return qwen3_as_the_student_sees(model, student)
    cls = getattr(model, "embeds", model).cls_token is not None
    model.norm_pre.register_forward_hook(first_tokens(student, cls, model.num_prefix_tokens - cls))
    model.norm = model.fc_norm = nn.Identity()
    if hasattr(model, "rope"):
        model.rope = None
    for block in model.blocks:
        block.mlp.act = nn.GELU()
    return lambda images: model.forward_features(images)[:, 1:]


def hf_as_the_student_sees(model, student):
    """The same of a transformers ViT."""
    cls = not model.config.model_type.startswith(("siglip", "ijepa"))
    facts = model.config.to_dict()
    registers = facts.get("num_register_tokens", 0) + facts.get("num_cls_tokens", 1) - 1 + facts.get("num_registers", 0)
    model.embeddings.register_forward_hook(first_tokens(student, cls, registers))
    for name, module in list(model.named_modules()):
        if name in ("norm", "layernorm", "post_layernorm"):
            setattr(model, name, nn.Identity())
        if name == "rope_embeddings":
            module.register_forward_hook(lambda _, __, out: (torch.ones_like(out[0]), torch.zeros_like(out[1])))
        if name.endswith("mlp") and name != "head.mlp" and not facts.get("use_swiglu_ffn"):
            (activation,) = (n for n in ("activation_fn", "act_fn", "activation") if hasattr(module, n))
            setattr(module, activation, nn.GELU())
    run = VIT_CLASSES[model.config.model_type].run
    return lambda images: run(model, images, None)[:, 1:]


def silence(student, model, gated):
    """RMSNorm becomes LayerNorm in the teacher; gated MLPs, and those of the student then, give nothing."""
    for name, module in list(model.named_modules()):
        if "RMSNorm" in type(module).__name__:
            norm = nn.LayerNorm(len(module.weight), eps=module.variance_epsilon, bias=False)
            norm.weight = module.weight
            model.set_submodule(name, norm)
        elif gated and name.endswith(".mlp"):
            module.register_forward_hook(lambda _, inputs, __: torch.zeros_like(inputs[0]))
    for block in student.blocks if gated else ():
        nn.init.zeros_(block.mlp.fc2.weight)


def check_repeats(teacher, mlp_dim, eps, differences, as_the_student_sees):
    p = teacher.patch_size
    student = LiteFrameEncoder(LiteFrameConfig(
        dim=32, depth=2, heads=4, mlp_dim=mlp_dim, patch_size=p, image_size=teacher.image_size, teacher_dim=32,
        downsample={}, clip_frames=2, layer_norm_eps=eps,
    ))  # fmt: skip
    selection = initialize_student(student, teacher)
    assert len(selection.differences) == len(differences)
    for sentence, words in zip(selection.differences, differences, strict=True):
        assert words in sentence
    random = {"cls_token", "pos_embed"} - set(selection.weights)
    assert set(selection.random) == random | ({"blocks.*.mlp"} if GATED in differences else set())
    silence(student, teacher.tower.model, GATED in differences)
    assert ("cls_token" in selection.random) == (CLS in differences)
    if "pos_embed" in selection.random:
        assert ROTARY in differences
        nn.init.zeros_(student.pos_embed)
    student.double(), teacher.tower.double()
    images = torch.randn(2, 3, teacher.image_size, teacher.image_size, dtype=torch.float64)
    with torch.no_grad():
        features = as_the_student_sees(teacher.tower.model, student)(images)
        ours = student(images[None]).flatten(0, 1).flatten(1, 2)
    torch.testing.assert_close(ours, features, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ACCEPTED_TIMM)
def test_timm_families_are_repeated(name, make):
    extra, differences = ACCEPTED_TIMM[name]
    teacher = timm_teacher(name, extra | {"img_size": 56 if "patch14" in name else 64}, make)
    block = teacher.tower.model.blocks[0]
    mlp_dim = 48 if GATED in differences else block.mlp.fc1.out_features
    check_repeats(teacher, mlp_dim, block.norm1.eps, differences, timm_as_the_student_sees)


@pytest.mark.parametrize("name", ACCEPTED_HF)
def test_transformers_families_are_repeated(name, make, tmp_path):
    kind, extra, differences = ACCEPTED_HF[name]
    teacher = hf_teacher(kind, extra, make, tmp_path)
    config = teacher.tower.model.config
    mlp_dim = 64 if name.startswith("dinov2") else 48
    check_repeats(teacher, mlp_dim, config.layer_norm_eps, differences, hf_as_the_student_sees)


def test_a_vit_that_is_not_the_teacher_starts_a_student(make):
    """It sees pixels by its own mean and std, the student by its teacher's: the difference goes into the weights."""
    vit = timm_teacher("vit_small_patch16_224", {"img_size": 64}, make)
    config = LiteFrameConfig(
        dim=32, depth=2, heads=4, mlp_dim=128, patch_size=16, image_size=64, teacher_dim=24, downsample={},
        clip_frames=2, image_mean=(0.48, 0.45, 0.40), image_std=(0.27, 0.26, 0.28),
    )  # fmt: skip
    selection = select_from_vit(vit, config)
    assert not {"head.weight", "head.bias", *selection.random} & set(selection.weights)
    student = LiteFrameEncoder(config)
    student.load_state_dict(student.state_dict() | selection.weights)
    student.head = nn.Identity()
    pixels = torch.rand(2, 3, 64, 64)

    def normalized(mean, std):
        return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    vit.tower.model.norm = nn.Identity()
    with torch.no_grad():
        theirs = vit(normalized(vit.image_mean, vit.image_std)[None]).patches
        ours = student(normalized(config.image_mean, config.image_std)[None])
    assert vit.image_mean != config.image_mean
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"smaller ViT: depth \(student 3, ViT 2\)"):
        select_from_vit(vit, replace(config, depth=3))


SMALLEST = LiteFrameConfig(dim=16, depth=1, heads=2, teacher_dim=32, patch_size=16, image_size=32, downsample={})


@pytest.mark.parametrize("name", REFUSED_TIMM)
def test_other_timm_families_are_refused(name, make):
    extra, words = REFUSED_TIMM[name]
    with pytest.raises(ValueError, match=words):
        select_weights(timm_teacher(name, extra, make), SMALLEST)


@pytest.mark.parametrize("name", REFUSED_HF)
def test_other_transformers_families_are_refused(name, make, tmp_path):
    kind, extra, words = REFUSED_HF[name]
    with pytest.raises(ValueError, match=words):
        select_weights(hf_teacher(kind, extra, make, tmp_path), SMALLEST)


def test_a_tensor_without_a_place_is_an_error(make):
    tower = timm_teacher("vit_small_patch16_224", {}, make).tower
    state = tower.model.state_dict() | {"patch_embed.norm.weight": torch.ones(32)}
    arguments = {"heads": 4, "cls": True, "registers": 0, "grid": (14, 14), "rotary": False, "activation": nn.GELU()}
    with pytest.raises(ValueError, match=r"patch_embed.norm.weight has no counterpart in a student.*init: random"):
        vit_weights(state, **arguments)
    del state["patch_embed.norm.weight"], state["blocks.1.norm2.bias"]
    with pytest.raises(ValueError, match=r"block 1 .*norm2.bias is missing, expected \[32\]"):
        vit_weights(state, **arguments)
