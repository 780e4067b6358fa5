"""Teachers that load_teacher takes, as a table: each is built here with tiny random weights and asked what it gives.

What a frame costs is counted at a published size, of which no weights are made.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import timm
import torch
import transformers
from torch import nn
from transformers.initialization import no_init_weights

from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.cost import cost
from liteframe.models.teacher.base import VitTower, transformer_blocks
from liteframe.models.teacher.glm4v import Glm4vTower
from liteframe.models.teacher.hf_vit import VIT_CLASSES, HfTower
from liteframe.models.teacher.licenses import consequence
from liteframe.models.teacher.load import load_teacher
from liteframe.models.teacher.qwen import QwenTower
from liteframe.models.vlm.family import QWEN2_5_VL, QWEN3_5, QWEN3_VL
from liteframe.models.vlm.family_record import Family

Settings: TypeAlias = dict[str, Any]
Maker: TypeAlias = Callable[[bool], VitTower | QwenTower]
TINY_HF = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TINY_QWEN = {"hidden_size": 32, "depth": 2, "num_heads": 4, "intermediate_size": 64, "out_hidden_size": 32}
TINY_TIMM = {"embed_dim": 32, "depth": 2, "num_heads": 4}
SO400M: Settings = {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304}
VIT_H: Settings = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "intermediate_size": 5120}
VIT_L: Settings = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
VIT_B: Settings = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
MIT, APACHE, NVIDIA = "mit", "apache-2.0", "nvidia-open-model-license"


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Attributes:
        name: what people call it.
        loads: what load_teacher takes: values of `model_type`, or names of timm.
        license: of the published weights, where it was looked up; those of timm are as timm states them.
        make: builds it with its own patches and positions and random weights, few of them (True) or those of a
            published size; LookupError where the installed library does not have it.
    """

    name: str
    loads: tuple[str, ...]
    license: str | None
    make: Maker


def _hf(config: str, layer: int | None = None, tiny_too: Settings | None = None, **published: Any) -> Maker:
    """A ViT of transformers; `published` where the library's defaults are no checkpoint's."""

    def make(tiny: bool) -> VitTower:
        if not hasattr(transformers, config):
            raise LookupError(f"not in transformers {transformers.__version__}")
        settings = published | TINY_HF | (tiny_too or {}) if tiny else published
        made = getattr(transformers, config)(**settings)
        model = getattr(transformers, VIT_CLASSES[made.model_type].name)(made).eval()
        return HfTower(model, layer)

    return make


def _qwen(family: Family, tiny_too: Settings, **published: Any) -> Maker:
    def make(tiny: bool) -> QwenTower:
        config = family.hf_class.config_class()
        settings = published | TINY_QWEN | tiny_too if tiny else published
        config.vision_config = type(config.vision_config)(**settings)
        return QwenTower(family.teacher_half(config).eval().tower)

    return make


def _timm(name: str, model: str, **tiny_too: Any) -> Entry:
    def make(tiny: bool) -> VitTower:
        settings = TINY_TIMM | tiny_too if tiny else {}
        tower = load_teacher(f"timm/{model}", pretrained=False, **settings).tower
        assert isinstance(tower, VitTower)
        return tower

    published = timm.get_pretrained_cfg(model)
    return Entry(name, (f"timm/{model}",), published.license if published else None, make)


def entries() -> tuple[Entry, ...]:
    """All rows, those of transformers first."""
    siglip = {"patch_size": 14, "image_size": 384, **SO400M}
    return (
        Entry("InternVL 3 and 3.5", ("internvl", "internvl_vision"), MIT,
              _hf("InternVLVisionConfig", patch_size=14, image_size=448, use_mean_pooling=True, attention_bias=True)),
        Entry("LLaVA-OneVision", ("llava_onevision",), APACHE,
              _hf("SiglipVisionConfig", layer=-1, vision_use_head=False, **siglip | {"num_hidden_layers": 26})),
        Entry("Qwen2.5-VL (7B)", ("qwen2_5_vl",), APACHE,
              _qwen(QWEN2_5_VL, {"fullatt_block_indexes": [1]}, hidden_size=1280)),
        Entry("Qwen3-VL", ("qwen3_vl",), APACHE, _qwen(QWEN3_VL, {"deepstack_visual_indexes": [0]})),
        Entry("Qwen3.5", ("qwen3_5",), APACHE, _qwen(QWEN3_5, {})),
        Entry("SigLIP, SigLIP 2 of fixed size", ("siglip", "siglip_vision_model"), APACHE,
              _hf("SiglipVisionConfig", **siglip)),
        Entry("SigLIP 2 NaFlex", ("siglip2_vision_model",), APACHE,
              _hf("Siglip2VisionConfig", patch_size=16, num_patches=256)),
        Entry("Gemma 3, PaliGemma", ("gemma3", "paligemma"), "gemma",
              _hf("SiglipVisionConfig", patch_size=14, image_size=896, vision_use_head=False, **SO400M)),
        Entry("Gemma 4", ("gemma4", "gemma4_vision"), APACHE,
              _hf("Gemma4VisionConfig", tiny_too={"num_key_value_heads": 4, "head_dim": 8})),
        Entry("SmolVLM 2, Idefics 3", ("smolvlm", "smolvlm_vision", "idefics3", "idefics3_vision"), APACHE,
              _hf("SmolVLMVisionConfig", patch_size=16, image_size=512, **VIT_B)),
        Entry("GLM-4.1V, 4.5V, 4.6V", ("glm4v", "glm4v_moe"), MIT, _glm4v),
        Entry("Perception LM", ("perception_lm",), None, _perception_lm),
        Entry("C-RADIO v4", ("radio",), NVIDIA, _hf("RadioConfig", tiny_too={"mlp_ratio": 2.0}, image_size=512)),
        Entry("DINOv3", ("dinov3_vit",), "dinov3-license",
              _hf("DINOv3ViTConfig", patch_size=16, image_size=224, num_register_tokens=4)),
        Entry("DINOv2", ("dinov2",), APACHE, _hf("Dinov2Config", patch_size=14, image_size=518)),
        Entry("DINOv2 with registers", ("dinov2_with_registers",), APACHE,
              _hf("Dinov2WithRegistersConfig", patch_size=14, image_size=518, num_register_tokens=4)),
        Entry("TIPSv2", ("tipsv2_vision_model",), APACHE, _hf("Tipsv2VisionConfig")),
        Entry("CLIP", ("clip", "clip_vision_model"), MIT,
              _hf("CLIPVisionConfig", patch_size=14, image_size=336, **VIT_L)),
        Entry("MetaCLIP 2", ("metaclip_2_vision_model",), None,
              _hf("MetaClip2VisionConfig", patch_size=14, image_size=224, **VIT_H)),
        Entry("I-JEPA", ("ijepa",), None, _hf("IJepaConfig", patch_size=14, image_size=224, **VIT_H)),
        Entry("Pixio", ("pixio",), None, _hf("PixioConfig", patch_size=16, image_size=256)),
        Entry("ViT", ("vit",), APACHE, _hf("ViTConfig", patch_size=16, image_size=224)),
        _timm("InternViT-300M", "vit_intern300m_patch14_448"),
        _timm("SigLIP 2", "vit_base_patch16_siglip_256"),
        _timm("SigLIP 2 NaFlex", "naflexvit_base_patch16_siglip"),
        _timm("Qwen3-VL, Qwen3.5", "qwen3_vit_88m"),
        _timm("Gemma 4", "gemma4_vit_167m", head_dim=8, intermediate_size=64),
        _timm("Perception Encoder", "vit_pe_core_base_patch16_224"),
        _timm("Perception Encoder G", "vit_pe_core_gigantic_patch14_448"),
        _timm("Perception Encoder, spatial, G", "vit_pe_spatial_gigantic_patch14_448"),
        _timm("C-RADIO v4", "naflexvit_so400m_patch16_radio_v4"),
        _timm("C-RADIO v3", "vit_base_patch16_radio_v3"),
        _timm("DINOv3", "vit_base_patch16_dinov3"),
        _timm("TIPSv2", "vit_base_patch14_reg1_tipsv2"),
        _timm("plain ViT", "vit_base_patch16_224"),
    )  # fmt: skip


def _glm4v(tiny: bool) -> Glm4vTower:
    small = {"depth": 2, "hidden_size": 32, "num_heads": 4, "intermediate_size": 48, "out_hidden_size": 16}
    config = transformers.Glm4vVisionConfig(**small if tiny else {})
    return Glm4vTower(transformers.Glm4vVisionModel(config).eval())


def _perception_lm(tiny: bool) -> VitTower:
    from liteframe.models.teacher.timm_vit import TimmTower

    arguments = {"img_size": 448, "dynamic_img_size": True, **(TINY_TIMM if tiny else {})}
    config = transformers.TimmWrapperConfig(architecture="vit_pe_lang_large_patch14_448", model_args=arguments)
    return TimmTower(transformers.TimmWrapperModel(config).eval().timm_model)


@torch.no_grad()
def table() -> list[str]:
    """The rows as lines of Markdown, under a heading."""
    lines = [
        "| teacher | `model_type` or name | before the patches | patches | FLOPs a frame | saliency "
        "| license of the weights, for a student | a student starts from its weights |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in entries():
        loads = ", ".join(f"`{name}`" for name in entry.loads)
        try:
            tower = entry.make(True)
        except LookupError as error:
            lines.append(f"| {entry.name} | {loads} | {error} |  |  |  |  |  |")
            continue
        p, side = tower.patch_size, tower.image_size // tower.patch_size
        m, frames = tower.merge, tower.temporal_patch
        features = tower(torch.zeros(1, 1, 3, 2 * m * p, 3 * m * p))
        assert features.patches.shape[2:4] == (2 * m, 3 * m), entry.name
        registers = tower.prefix - tower.cls
        prefix = [f"{tower.cls} cls"] * (tower.cls > 0)
        prefix += [f"{registers} register{'s' * (registers > 1)}"] * (registers > 0)
        cells = (
            entry.name,
            loads,
            ", ".join(prefix) or "none",
            f"{side} x {side} of {p} px" + (f", {frames} frames each" if frames > 1 else ""),
            _flops(entry),
            ", ".join(tower.saliencies),
            f"{entry.license}: {consequence(entry.license)}" if entry.license else consequence(None),
            _start(tower),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _flops(entry: Entry) -> str:
    """Of a published size, and times what a student takes at the same patches; an odd side is rounded up for both."""
    with torch.device("meta"), no_init_weights():
        tower = entry.make(False)
    p = tower.patch_size
    side = -(-tower.image_size // p // 2) * 2
    flops, clip = tower_flops(tower, (side, side)), LiteFrameConfig(patch_size=p, image_size=side * p)
    own = cost(clip, frames=clip.clip_frames)
    times = flops * clip.clip_frames / (own.flops + own.attention_flops)
    return f"{len(blocks_of(tower))} x {tower.dim}: {flops / 1e9:,.0f} G, {times:.1f}x"


def tower_flops(tower: VitTower | QwenTower, grid: tuple[int, int]) -> int:
    """FLOPs of one frame of (h,w) patches, two per multiply-add: patch embedding and blocks.

    Linear and convolution layers and the two attention products, as `flops + attention_flops` of
    `liteframe.models.student.cost`; heads, mergers and projectors behind the blocks are left out. Of a tower that sees
    pairs, half a pair. The weights may be on the meta device.
    """
    blocks, dim, patches = blocks_of(tower), tower.dim, math.prod(grid)
    tokens = tower.prefix + patches
    matrices = sum(weight.numel() for weight in blocks.parameters() if weight.ndim > 1)
    flops = 2 * tokens * matrices
    flops += 2 * patches * 3 * tower.patch_size**2 * tower.temporal_patch * dim
    flops += sum(4 * tokens * seen * dim for seen in _seen(tower, len(blocks), tokens))
    return flops // tower.temporal_patch


def blocks_of(tower: VitTower | QwenTower) -> nn.ModuleList | nn.Sequential:
    """Its blocks, in order."""
    return tower.model.blocks if isinstance(tower, QwenTower) else transformer_blocks(tower.model)


def _seen(tower: VitTower | QwenTower, depth: int, tokens: int) -> list[int]:
    """Tokens that a token attends to, block by block."""
    window = getattr(tower.model.config, "window_size", None) if isinstance(tower, QwenTower) else None
    if window is None:
        return [tokens] * depth
    whole = tower.model.config.fullatt_block_indexes
    return [tokens if block in whole else (window // tower.patch_size) ** 2 for block in range(depth)]


def _start(tower: VitTower | QwenTower) -> str:
    """Whether weight selection takes the tower's weights, and what of it the student does not repeat."""
    try:
        differences = tower.vit_weights().differences
    except ValueError as error:
        return f"no: {str(error).split(', so its weights')[0]}"
    return f"yes, but {'; '.join(differences)}" if differences else "yes"
