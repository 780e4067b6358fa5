"""A Video LLM with a LiteFrame encoder for mlx-vlm (0.7.10 and later), read from the folder it lies in.

mlx-vlm imports the file that `model_file` of a checkpoint's config.json names, so an exported folder needs nothing of
LiteFrame. The language half is mlx-vlm's own; the encoder and the projectors of InternVL and LLaVA-OneVision are here.

Shapes: B videos, T frames, H x W pixels, h x w patch grid, N = 1 + h*w tokens a frame (cls first), C channels.
"""

import importlib
import math
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_vlm.models.base import BaseModelConfig, InputEmbeddingsFeatures

LANGUAGES = ("llama", "qwen2", "qwen3")  # whose classes mlx-vlm builds alike


class TextConfig:
    """Makes mlx-vlm's config of the language half."""

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Any:
        """mlx-vlm's config out of transformers', whose rotary settings have another place.

        Raises:
            ValueError: the language half is none of LANGUAGES, or one that mlx-vlm would compute in another way.
        """
        kind = values["model_type"]
        if kind not in LANGUAGES:
            raise ValueError(f"mlx_model.py knows no language half of type {kind!r}, only {', '.join(LANGUAGES)}")
        rotary = dict(values.get("rope_parameters") or {})
        values = {"rope_theta": rotary.pop("rope_theta", None), **values}
        if values["rope_theta"] is None:
            raise ValueError("config.json has no rope_theta under text_config, and a default would be a guess")
        if rotary.get("rope_type", "default") != "default":
            values["rope_scaling"] = rotary
        width = values["hidden_size"] // values["num_attention_heads"]
        if kind == "qwen2" and values.get("head_dim") not in (None, width):
            raise ValueError(f"mlx-vlm's qwen2 has heads of {width} channels, the checkpoint of {values['head_dim']}")
        return importlib.import_module(f"mlx_vlm.models.{kind}").ModelConfig.from_dict(values)


@dataclass
class VisionConfig(BaseModelConfig):
    """The encoder's fields of config.json; see LiteFrameConfig."""

    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_dim: int = 3072
    patch_size: int = 14
    image_size: int = 448
    teacher_dim: int = 1024
    downsample: dict[str, list[int]] = field(default_factory=dict)
    temporal_kernel: int = 3
    temporal_mixer: str = "conv"
    clip_frames: int = 16
    layer_norm_eps: float = 1e-6
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        """Refuse a student that is not built here."""
        if self.temporal_mixer not in ("conv", "none"):
            raise ValueError(f"mlx_model.py has no temporal_mixer {self.temporal_mixer!r}, only conv and none")


@dataclass
class ModelConfig(BaseModelConfig):
    """What config.json says of the whole."""

    text_config: Any = None
    vision_config: Any = None
    model_type: str = "liteframe_internvl"
    image_token_id: int | None = None
    image_token_index: int | None = None
    downsample_ratio: float = 0.5
    eos_token_id: Any = None

    @property
    def placeholder(self) -> int:
        """The token that stands for one of the encoder's."""
        token = self.image_token_id if self.image_token_id is not None else self.image_token_index
        if token is None:
            raise ValueError("config.json names no image_token_id")
        return token


class Attention(nn.Module):
    """Multi-head attention among the tokens of a frame."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.proj = nn.Linear(config.dim, config.dim)

    def __call__(self, x: mx.array) -> mx.array:
        """[M,N,C] -> [M,N,C], M frames."""
        sets, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(sets, tokens, 3, self.heads, -1).transpose(2, 0, 3, 1, 4)  # [3,M,heads,N,C/heads]
        scale = (channels // self.heads) ** -0.5
        out = mx.fast.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], scale=scale)
        return self.proj(out.transpose(0, 2, 1, 3).reshape(sets, tokens, channels))


class Mlp(nn.Module):
    """Two linear layers around an (erf) GELU."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.dim, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.dim)

    def __call__(self, x: mx.array) -> mx.array:
        """[...,C] -> [...,C]."""
        return self.fc2(nn.gelu(self.fc1(x)))


class TemporalConv(nn.Module):
    """Residual depthwise convolution along T; one frame alone passes unchanged, a still meets the sum of the taps."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.weight = mx.zeros((config.dim, config.temporal_kernel))
        self.bias = mx.zeros((config.dim,))

    def __call__(self, x: mx.array, still: bool) -> mx.array:
        """[B,T,N,C] -> [B,T,N,C]."""
        frames, taps = x.shape[1], self.weight.shape[1]
        wide, weight = x.astype(mx.float32), self.weight.astype(mx.float32)
        if still:
            return (wide + wide * weight.sum(1) + self.bias.astype(mx.float32)).astype(x.dtype)
        if frames == 1:
            return x
        padded = mx.pad(wide, [(0, 0), (taps // 2, taps - 1 - taps // 2), (0, 0), (0, 0)])
        for tap in range(taps):
            wide = wide + padded[:, tap : tap + frames] * weight[:, tap]
        return (wide + self.bias.astype(mx.float32)).astype(x.dtype)


class StridedConv(nn.Module):
    """Depthwise convolution with kernel = stride; the cls token sees the kernel summed over its spatial taps."""

    def __init__(self, dim: int, stride: list[int]):
        super().__init__()
        self.weight = mx.zeros((dim, *stride))
        self.bias = mx.zeros((dim,))

    def __call__(self, x: mx.array, grid: tuple[int, int]) -> tuple[mx.array, tuple[int, int]]:
        """[B,T,1+H*W,C] on grid (H,W) -> [B,T/t,1+H/h*W/w,C] and the new grid."""
        (batch, frames, _, channels), (height, width) = x.shape, grid
        t, h, w = self.weight.shape[1:]
        weight, bias = self.weight.astype(mx.float32), self.bias.astype(mx.float32)
        shape = (batch, frames // t, t, height // h, h, width // w, w, channels)
        windows = x[:, :, 1:].astype(mx.float32).reshape(shape)
        kernel = weight.transpose(1, 2, 3, 0)  # [t,h,w,C]
        patches = (windows * kernel[:, None, :, None]).sum((2, 4, 6)) + bias  # [B,T/t,H/h,W/w,C]
        cls = x[:, :, 0].astype(mx.float32).reshape(batch, frames // t, t, channels)
        cls = (cls * kernel.sum((1, 2))).sum(2, keepdims=True) + bias  # [B,T/t,1,C]
        tokens = mx.concatenate([cls, patches.reshape(batch, frames // t, -1, channels)], axis=2)
        return tokens.astype(x.dtype), (height // h, width // w)


class Block(nn.Module):
    """Spatial attention, temporal convolution, MLP."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.attn = Attention(config)
        self.ls1 = mx.ones((config.dim,))
        if config.temporal_mixer == "conv":
            self.temporal = TemporalConv(config)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)
        self.ls2 = mx.ones((config.dim,))

    def __call__(self, x: mx.array, still: bool) -> mx.array:
        """[B,T,N,C] -> [B,T,N,C]; a still's frame stands for endless ones like it."""
        normed = self.norm1(x).reshape(-1, *x.shape[2:])  # [B*T,N,C]
        x = x + self.ls1 * self.attn(normed).reshape(x.shape)
        x = self.temporal(x, still) if "temporal" in self else x
        return x + self.ls2 * self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """The student: [B,T,3,H,W] -> [B,ceil(T/t),H/(p*h),W/(p*w),teacher_dim], as LiteFrameEncoder."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        side = config.image_size // config.patch_size
        self.patch_embed = nn.Conv2d(3, config.dim, config.patch_size, config.patch_size)
        self.cls_token = mx.zeros((1, 1, config.dim))
        self.pos_embed = mx.zeros((1, 1 + side * side, config.dim))
        self.blocks = [Block(config) for _ in range(config.depth)]
        # MLX takes names that are numbers for places in a list.
        self.downsample = {f"after_{block}": StridedConv(config.dim, s) for block, s in config.downsample.items()}
        self.head = nn.Linear(config.dim, config.teacher_dim)

    def __call__(self, video: mx.array, still: bool = False) -> mx.array:
        """Uint8 [B,T,3,H,W], or normalized; `still` as of LiteFrameEncoder.

        Raises:
            ValueError: the strides do not divide the frame size.
        """
        dtype = self.patch_embed.weight.dtype
        if video.dtype == mx.uint8:
            mean, std = (mx.array(v)[:, None, None] for v in (self.config.image_mean, self.config.image_std))
            video = (video.astype(mx.float32) / 255 - mean) / std
        strides = list(self.config.downsample.values())
        t, h, w = (math.prod(stride[axis] for stride in strides) for axis in range(3))
        p = self.config.patch_size
        if video.shape[3] % (p * h) or video.shape[4] % (p * w):
            raise ValueError(f"frames of {video.shape[3]}x{video.shape[4]} pixels are no multiple of {p * h}x{p * w}")
        missing = 0 if still else -video.shape[1] % t
        if missing:
            video = mx.concatenate([video, mx.repeat(video[:, -1:], missing, axis=1)], axis=1)
        batch, frames = video.shape[:2]
        patches = self.patch_embed(video.flatten(0, 1).transpose(0, 2, 3, 1).astype(dtype))  # [B*T,h,w,C]
        grid = (patches.shape[1], patches.shape[2])
        cls = mx.broadcast_to(self.cls_token, (batch * frames, 1, self.config.dim))
        x = mx.concatenate([cls, patches.flatten(1, 2)], axis=1) + self._positions(grid)  # [B*T,N,C]
        x = x.reshape(batch, frames, *x.shape[1:])
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, still)
            if f"after_{number}" in self.downsample:
                conv = self.downsample[f"after_{number}"]
                x, grid = conv(mx.repeat(x, conv.weight.shape[1], axis=1) if still else x, grid)
        features = self.head(x[:, :, 1:])  # [B,T/t,h*w,teacher_dim]
        return features.reshape(*features.shape[:2], *grid, -1)

    def _positions(self, grid: tuple[int, int]) -> mx.array:
        side = self.config.image_size // self.config.patch_size
        if grid == (side, side):
            return self.pos_embed
        table = self.pos_embed[0, 1:].astype(mx.float32).reshape(side, side, -1)
        rows, columns = (mx.array(bicubic_weights(side, size)) for size in grid)  # [h,side], [w,side]
        table = mx.einsum("is,jt,stc->ijc", rows, columns, table)
        patches = table.flatten(0, 1)[None].astype(self.pos_embed.dtype)
        return mx.concatenate([self.pos_embed[:, :1], patches], axis=1)


def bicubic_weights(size: int, new_size: int) -> np.ndarray:
    """How each of `new_size` values along an axis is made of `size`: [new_size,size], torch's antialiased bicubic."""
    scale = size / new_size
    stretch = max(scale, 1.0)
    centers = (np.arange(new_size) + 0.5) * scale
    x = np.abs(np.arange(size) + 0.5 - centers[:, None]) / stretch
    # Keys' kernel with a = -0.5.
    weights = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


class Projector(nn.Module):
    """Two linear layers around a GELU; InternVL's with a norm before them."""

    def __init__(self, width: int, hidden: int, norm: bool):
        super().__init__()
        if norm:
            self.layer_norm = nn.LayerNorm(width)
        self.linear_1 = nn.Linear(width, hidden)
        self.linear_2 = nn.Linear(hidden, hidden)

    def __call__(self, x: mx.array) -> mx.array:
        """[N,C] -> [N,text hidden size]."""
        x = self.layer_norm(x) if "layer_norm" in self else x
        return self.linear_2(nn.gelu(self.linear_1(x)))


class Model(nn.Module):
    """The whole, as mlx-vlm wants it."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        text, vision = config.text_config, config.vision_config
        self.vision_tower = Encoder(vision)
        self.language_model = importlib.import_module(f"mlx_vlm.models.{text.model_type}.language").LanguageModel(text)
        if config.model_type == "liteframe_internvl":
            self.factor = round(1 / config.downsample_ratio)
        elif config.model_type == "liteframe_llava_onevision":
            self.factor = 1
            self.image_newline = mx.zeros((text.hidden_size,))
        else:
            raise ValueError(f"mlx_model.py does not know {config.model_type!r}")
        internvl = config.model_type == "liteframe_internvl"
        self.multi_modal_projector = Projector(vision.teacher_dim * self.factor**2, text.hidden_size, norm=internvl)

    @property
    def layers(self) -> list[nn.Module]:
        """Of the language half."""
        return self.language_model.layers

    def video_features(self, frames: mx.array, counts: list[int]) -> list[mx.array]:
        """[sum of T,3,H,W] with `counts` frames a video -> per video [tokens, text hidden size]."""
        features = []
        for start, end in pairwise([0, *accumulate(counts)]):
            clip = self.config.vision_config.clip_frames
            grids = []
            for first in range(start, end, clip):
                still = end - start == 1 < clip
                grids.append(self.vision_tower(frames[None, first : min(first + clip, end)], still)[0])  # [t',h,w,C]
                mx.eval(grids[-1])  # a long video takes the memory of one clip
            grid = mx.concatenate(grids)
            t, h, w, channels = grid.shape
            f = self.factor
            blocks = grid.reshape(t, h // f, f, w // f, f, channels).transpose(0, 1, 3, 2, 4, 5)
            tokens = self.multi_modal_projector(blocks.reshape(t * (h // f) * (w // f), f * f * channels))
            if "image_newline" in self:
                tokens = mx.concatenate([tokens, self.image_newline[None].astype(tokens.dtype)])
            features.append(tokens)
        return features

    def get_input_embeddings(
        self,
        input_ids: mx.array,
        pixel_values: mx.array | None = None,
        pixel_values_videos: mx.array | None = None,
        video_frames: Any = None,
        **kwargs: Any,
    ) -> InputEmbeddingsFeatures:
        """The prompt with its videos [1,L,text hidden size].

        Raises:
            ValueError: more than one prompt, or placeholders that do not match the videos.
        """
        embeddings = self.language_model.model.embed_tokens(input_ids)
        if pixel_values_videos is None:
            if pixel_values is not None:
                raise ValueError("pixel_values are of another processor; the folder's own makes pixel_values_videos")
            return InputEmbeddingsFeatures(inputs_embeds=embeddings)
        if input_ids.shape[0] != 1:
            raise ValueError(f"one prompt at a time, got {input_ids.shape[0]}")
        if isinstance(pixel_values_videos, list):
            raise ValueError("these videos have frames of several sizes; ask about one at a time")
        counts = [pixel_values_videos.shape[0]] if video_frames is None else [int(n) for n in video_frames]
        features = mx.concatenate(self.video_features(pixel_values_videos, counts)).astype(embeddings.dtype)
        places = np.flatnonzero(np.array(input_ids[0]) == self.config.placeholder)
        if len(places) != len(features):
            raise ValueError(f"the prompt has {len(places)} places for the videos' {len(features)} tokens")
        embeddings[0, mx.array(places)] = features
        return InputEmbeddingsFeatures(inputs_embeds=embeddings)

    def __call__(self, input_ids: mx.array, pixel_values: Any = None, mask: Any = None, cache: Any = None, **kw: Any):
        """Logits [1,L,vocabulary] of the language half."""
        embeddings = self.get_input_embeddings(input_ids, pixel_values, **kw).inputs_embeds
        return self.language_model(inputs=input_ids, inputs_embeds=embeddings, cache=cache)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Names and layouts of transformers -> those here; what mlx-vlm has saved is as it is."""
        found = {}
        for name, value in weights.items():
            if name == "lm_head.weight":
                if self.config.text_config.tie_word_embeddings:
                    continue
                name = "language_model.lm_head.weight"
            elif name.startswith("model."):
                name = name.removeprefix("model.")
                name = name.replace("language_model.", "language_model.model.", 1)
                name = name.replace("vision_tower.encoder.", "vision_tower.", 1)
                name = name.replace("vision_tower.downsample.", "vision_tower.downsample.after_", 1)
                if name == "vision_tower.patch_embed.weight":
                    value = value.transpose(0, 2, 3, 1)  # [C,3,p,p] -> [C,p,p,3]
            found[name] = value
        return found
