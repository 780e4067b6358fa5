"""The Video LLMs whose latency is compared, and prompts of the right length for them.

Latency depends on shapes, not on what the weights or the frames hold: models can have random weights, frames are noise
and text tokens are fillers, as many as a real prompt has.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration

from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.teacher.base import Teacher
from liteframe.models.teacher.huggingface import make_tower
from liteframe.models.vlm.attach import attach_encoder
from liteframe.models.vlm.family import family_of
from liteframe.models.vlm.load import load_video_llm
from liteframe.reduce.pooled_teacher import PooledEncoder, PooledTeacher


def internvl3_8b_config() -> InternVLConfig:
    """The configuration of `OpenGVLab/InternVL3-8B-hf` as published (arXiv 2504.10479), without its weights.

    Vision 24 x 1024 at 448 pixels and patches of 14, two-layer projector, language model (Qwen2.5-7B) 28 x 3584.
    """
    return _internvl3_config(
        hidden_size=3584,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        intermediate_size=18944,
    )


def internvl3_1b_config() -> InternVLConfig:
    """The same with the language model of InternVL3-1B (Qwen2.5-0.5B), 24 x 896."""
    return _internvl3_config(
        hidden_size=896,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        intermediate_size=4864,
    )


def _internvl3_config(**language_model: int) -> InternVLConfig:
    vision = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "image_size": [448, 448],
        "patch_size": [14, 14],
        "attention_bias": True,
        "use_qk_norm": False,
        "use_mean_pooling": True,
        "norm_type": "layer_norm",
        "layer_norm_eps": 1e-6,
        "layer_scale_init_value": 0.1,
        "hidden_act": "gelu",
    }
    text = {
        "model_type": "qwen2",
        **language_model,
        "vocab_size": 151674,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    }
    return InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=151667,
        image_seq_length=256,
        downsample_ratio=0.5,
        projector_hidden_act="gelu",
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


TEACHER, POOLED, LITEFRAME = "teacher VLM", "teacher + WAP", "LiteFrame"
# Text tokens around the image tokens of a frame or slot (`Frame12: <img>` .. `</img>`), and those of a question.
LABEL_TOKENS, QUESTION_TOKENS = 8, 48


def build_systems(
    vlm: InternVLForConditionalGeneration, encoder: LiteFrameEncoder
) -> dict[str, tuple[Any, LiteFrameConfig | None]]:
    """Name -> model and the encoder's config (None for the plain VLM); language model and projector are shared."""
    config = encoder.config
    tower = make_tower(family_of(vlm.config.model_type).parts(vlm).tower)
    teacher = Teacher(
        tower, name=vlm.name_or_path, dim=config.teacher_dim, patch_size=config.patch_size,
        image_size=config.image_size, image_mean=config.image_mean, image_std=config.image_std, resize=config.resize,
    )  # fmt: skip
    pooled = attach_encoder(vlm, PooledEncoder(PooledTeacher(teacher, config.compression)), config=config)
    student = attach_encoder(vlm, encoder.to(vlm.device, vlm.dtype))
    return {TEACHER: (vlm.eval(), None), POOLED: (pooled.eval(), config), LITEFRAME: (student.eval(), config)}


def random_internvl3_8b(
    device: torch.device, dtype: torch.dtype
) -> tuple[InternVLForConditionalGeneration, LiteFrameEncoder]:
    """InternVL3-8B and the paper's student in their true shapes, with random weights made on the device."""
    with torch.device(device):
        vlm = InternVLForConditionalGeneration._from_config(internvl3_8b_config(), dtype=dtype)
        encoder = LiteFrameEncoder(LiteFrameConfig()).to(dtype)
    return vlm, encoder


def load_pair(
    vlm: str | os.PathLike[str], encoder: str | os.PathLike[str], device: torch.device, dtype: torch.dtype
) -> tuple[InternVLForConditionalGeneration, LiteFrameEncoder]:
    """A checkpoint and an encoder folder that fits it.

    Raises:
        ValueError: `vlm` is no plain InternVL.
    """
    model, _ = load_video_llm(vlm, dtype=dtype)
    if not isinstance(model, InternVLForConditionalGeneration):
        kind = model.config.model_type
        said = "has a LiteFrame encoder already; name the InternVL that it was made from"
        raise ValueError(f"--vlm {vlm} {said if kind.startswith('liteframe_') else f'is a {kind}; name an InternVL'}")
    return model.to(device), LiteFrameEncoder.from_pretrained(encoder)


def tokens_per_frame(model: Any, config: LiteFrameConfig | None) -> float:
    """Image tokens that the language model reads for each frame."""
    per_unit = model.config.image_seq_length
    return per_unit if config is None else per_unit / config.compression[0]


def make_inputs(model: Any, config: LiteFrameConfig | None, frames: int, batch: int) -> dict[str, Tensor]:
    """Inputs of one pass: `batch` prompts, each with one video of `frames` frames of noise.

    Raises:
        ValueError: the prompt is longer than the language model reads.
    """
    device, dtype = model.device, model.dtype
    units = frames if config is None else -(-frames // config.compression[0])
    image = [model.config.image_token_id] * model.config.image_seq_length
    label = [1] * LABEL_TOKENS
    row = [token for _ in range(units) for token in (*label, *image)] + [1] * QUESTION_TOKENS
    limit = model.config.text_config.max_position_embeddings
    if len(row) > limit:
        raise ValueError(f"{len(row)} tokens, more than the {limit} that the language model reads")
    ids = torch.tensor([row] * batch, device=device)
    size = model.config.vision_config.image_size if config is None else (config.image_size,) * 2
    pixels = torch.randn(batch * frames, 3, *size, device=device, dtype=dtype)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if config is None:
        return {**inputs, "pixel_values": pixels}
    return {**inputs, "pixel_values_videos": pixels, "video_frames": torch.tensor([frames] * batch)}
