"""LiteFrame's student: a ViT that mixes and compresses frames on its way (arXiv 2605.17260; design, section 2).

Shapes: B videos, T frames, H x W pixels, h x w patch grid, N = 1 + h*w tokens a frame (cls first), C channels.
This file, config.py and mixers.py travel inside exported models: they import nothing else of liteframe.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from liteframe.models.student.config import MODEL_TYPE, LiteFrameConfig
from liteframe.models.student.mixers import StridedConv, build_temporal_mixer

__all__ = ["MODEL_TYPE", "LiteFrameConfig", "LiteFrameEncoder", "preprocessor_dict"]


class Attention(nn.Module):
    """Multi-head attention among the tokens of one frame."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[M,N,C] -> [M,N,C], M frames."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers around an (erf) GELU."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[...,C] -> [...,C]."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Spatial attention, temporal mixing, MLP; pre-norm, LayerScale on attention and MLP.

    Attributes:
        recompute: keep only the block's input for the backward pass, and compute the rest again there.
    """

    def __init__(self, config: LiteFrameConfig):
        super().__init__()
        self.recompute = False
        self.norm1 = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.attn = Attention(config.dim, config.heads)
        self.ls1 = nn.Parameter(torch.full((config.dim,), float(config.layer_scale_init)))
        self.temporal = build_temporal_mixer(config.temporal_mixer, config.dim, config.temporal_kernel)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.mlp = Mlp(config.dim, config.mlp_dim or 4 * config.dim)
        self.ls2 = nn.Parameter(torch.full((config.dim,), float(config.layer_scale_init)))

    def forward(self, x: Tensor) -> Tensor:
        """[B,T,N,C] -> [B,T,N,C]."""
        if self.recompute and torch.is_grad_enabled():
            # Nothing here is random, so there is no generator state to keep.
            return checkpoint(self._mix, x, use_reentrant=False, preserve_rng_state=False)
        return self._mix(x)

    def _mix(self, x: Tensor) -> Tensor:
        x = x + self.ls1 * self.attn(self.norm1(x).flatten(0, 1)).unflatten(0, x.shape[:2])
        x = self.temporal(x)
        return x + self.ls2 * self.mlp(self.norm2(x))


class LiteFrameEncoder(nn.Module):
    """Video to compressed patch features in the teacher's space.

    `encoder(video[B,T,3,H,W]) -> [B,ceil(T/t),H/(p*h),W/(p*w),teacher_dim]` with compression (t,h,w), patch size p.
    T is padded to a multiple of t by repeating the last frame. H and W may differ from config.image_size as long as
    the strides divide the patch grid; positions are then resampled. The whole T is encoded as one clip.
    """

    def __init__(self, config: LiteFrameConfig):
        super().__init__()
        self.config = config
        grid = config.image_size // config.patch_size
        self.patch_embed = nn.Conv2d(3, config.dim, config.patch_size, config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, config.dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.downsample = nn.ModuleDict({str(b): StridedConv(config.dim, s) for b, s in config.downsample.items()})
        self.head = nn.Linear(config.dim, config.teacher_dim)
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, video: Tensor) -> Tensor:
        """[B,T,3,H,W], normalized with the config's mean and std -> [B,ceil(T/t),H/(p*h),W/(p*w),teacher_dim].

        Raises:
            ValueError: the input has another rank, no frame, integer pixels, or a size the strides do not divide.
        """
        video = self._checked(video)
        batch, frames = video.shape[:2]
        patches = self.patch_embed(video.flatten(0, 1))
        grid = (patches.shape[2], patches.shape[3])
        patches = patches.flatten(2).transpose(1, 2)
        cls = self.cls_token.to(patches.dtype).expand(batch * frames, -1, -1)
        x = (torch.cat([cls, patches], dim=1) + self._positions(grid)).unflatten(0, (batch, frames))
        for number, block in enumerate(self.blocks, start=1):
            x = block(x)
            if str(number) in self.downsample:
                x, grid = self.downsample[str(number)](x, grid)
        return self.head(x[:, :, 1:]).unflatten(2, grid)

    def checkpoint_activations(self) -> None:
        """Train with each block computed twice: about a third more time, the same numbers, a fraction of the memory."""
        for block in self.blocks:
            block.recompute = True  # type: ignore[assignment]  # of a Block, which mypy takes for any module

    def _checked(self, video: Tensor) -> Tensor:
        if video.ndim != 5 or video.shape[2] != 3 or video.shape[1] == 0:
            raise ValueError(f"expected a video [B,T,3,H,W] with T >= 1, got {list(video.shape)}")
        if not video.is_floating_point():
            raise ValueError(f"expected frames normalized with the config's mean and std, got {video.dtype}")
        t, h, w = self.config.compression
        p = self.config.patch_size
        height, width = video.shape[3:]
        if height % (p * h) or width % (p * w) or height == 0 or width == 0:
            raise ValueError(
                f"frames of {height}x{width} pixels do not fit: height must be a multiple of {p * h} and width of "
                f"{p * w} (patch size times stride); resize the frames"
            )
        missing = -video.shape[1] % t
        if missing:
            video = torch.cat([video, video[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        return video

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        side = self.config.image_size // self.config.patch_size
        if grid == (side, side):
            return self.pos_embed
        # Bicubic resampling needs at least float32.
        table = self.pos_embed[:, 1:].to(torch.promote_types(self.pos_embed.dtype, torch.float32))
        table = table.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=grid, mode="bicubic", antialias=True)
        table = table.flatten(2).transpose(1, 2).to(self.pos_embed.dtype)
        return torch.cat([self.pos_embed[:, :1], table], dim=1)

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write config.json, model.safetensors and preprocessor_config.json, each of them complete or not at all."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        _replace(folder / "model.safetensors", lambda path: path.write_bytes(save(weights, metadata={"format": "pt"})))
        _write_json(folder / "preprocessor_config.json", preprocessor_dict(self.config))
        _write_json(folder / "config.json", self.config.to_dict())

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str]) -> "LiteFrameEncoder":
        """Load what save_pretrained wrote, on the CPU, in the saved dtype, in eval mode.

        Raises:
            FileNotFoundError: the folder or one of its files is missing.
            ValueError: the configuration is not a LiteFrame encoder's, or the weights do not fit it exactly.
        """
        folder = Path(directory)
        config = read_config(folder)
        with torch.device("meta"):
            encoder = cls(config)
        weights = _read_weights(folder / "model.safetensors")
        _check_weights(folder / "model.safetensors", weights, encoder.state_dict())
        encoder.load_state_dict(weights, assign=True)
        return encoder.eval()


def preprocessor_dict(config: LiteFrameConfig) -> dict[str, Any]:
    """Preprocessing in the vocabulary of Hugging Face image processors (resample 3 is bicubic), plus `resize`."""
    return {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": config.image_size, "width": config.image_size},
        "resample": 3,
        "resize": config.resize,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
    }


def _write_json(path: Path, values: dict[str, Any]) -> None:
    _replace(path, lambda temporary: temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8"))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_config(folder: Path) -> LiteFrameConfig:
    """The configuration of an encoder folder; its weights are not read. Raises as LiteFrameEncoder.from_pretrained."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {folder} is not a folder written by save_pretrained")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    if "model_type" not in values:
        raise ValueError(f"{path} has no model_type; a LiteFrame encoder has {MODEL_TYPE!r}")
    try:
        return LiteFrameConfig.from_dict(values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; the encoder's weights are expected there")
    try:
        with safe_open(path, framework="pt") as file:
            # Tensors of a mapped file change when somebody copies another file over it: own them.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file ({error}); copy or export it again") from error


def weight_misfits(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """What is missing, unexpected or of another shape in `found`; empty if it fits `wanted` exactly."""
    problems = [f"missing {name}" for name in wanted if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in wanted]
    problems += [
        f"{name} has shape {list(found[name].shape)} instead of {list(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    return "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")


def _check_weights(path: Path, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    if problems := weight_misfits(found, wanted):
        raise ValueError(f"{path} does not fit its config.json: {problems}")
