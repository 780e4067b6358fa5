"""LiteFrame's student: a ViT that mixes and compresses frames on its way (arXiv 2605.17260; design, section 2).

Shapes: B videos, T frames, H x W pixels, h x w patch grid, N = 1 + h*w tokens a frame (cls first), C channels.
This file and what it imports of liteframe travel inside exported models.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from liteframe_kernels import residual_norm
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.io import read_config, read_weights, write_encoder
from liteframe.models.student.mixer import Mixer
from liteframe.models.student.mixers import MIXERS, StridedConv
from liteframe.models.student.strides import Stride, of_a_still, window_of


class Attention(nn.Module):
    """Multi-head attention among the tokens of a set, as a rule those of one frame."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[M,N,C] -> [M,N,C], M sets."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # [M,N,3,heads,C/heads]
        # Taken apart as they lie: backward then puts the three gradients together by one copy, not by two.
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # each [M,heads,N,C/heads]
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))  # [M,N,C]


class Mlp(nn.Module):
    """Two linear layers around an (erf) GELU."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[...,C] -> [...,C]."""
        return self.fc2(F.gelu(self.fc1(x)))


class Pending(NamedTuple):
    """What a block gives: its stream `x + scale * branch`, which the next block adds up where it normalizes it.

    Attributes:
        x: [B,T,N,C].
        branch: [B,T,N,C].
        scale: [C], None for 1.
    """

    x: Tensor
    branch: Tensor
    scale: Tensor | None


def summed(stream: Tensor | Pending) -> Tensor:
    """What a block gives as one tensor [B,T,N,C]."""
    if isinstance(stream, Tensor):
        return stream
    return stream.x + (stream.branch if stream.scale is None else stream.scale * stream.branch)


class Block(nn.Module):
    """Spatial attention, temporal mixing, MLP; pre-norm, LayerScale on attention and MLP.

    Attributes:
        ls1, ls2: LayerScale of attention and MLP; None where it is folded into their last layer (see inference.py).
        recompute: keep only the block's input for the backward pass, and compute the rest again there.
    """

    def __init__(self, config: LiteFrameConfig):
        super().__init__()
        self.recompute = False
        self.norm1 = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.attn = Attention(config.dim, config.heads)
        self.ls1: nn.Parameter | None = nn.Parameter(torch.full((config.dim,), float(config.layer_scale_init)))
        self.temporal = MIXERS[config.temporal_mixer](config)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.mlp = Mlp(config.dim, config.hidden)
        self.ls2: nn.Parameter | None = nn.Parameter(torch.full((config.dim,), float(config.layer_scale_init)))

    def forward(self, stream: Tensor | Pending, still: bool = False) -> Tensor | Pending:
        """[B,T,N,C] -> [B,T,N,C], each as it is, or as a sum that is yet to be made; `still` as of Mixer.join."""
        if self.recompute and torch.is_grad_enabled():
            # Nothing here is random, so there is no generator state to keep; of a sum, one tensor.
            return checkpoint(self._mixed, summed(stream), still, use_reentrant=False, preserve_rng_state=False)
        return self._mix(stream, still)

    def _mix(self, stream: Tensor | Pending, still: bool = False) -> Pending:
        if isinstance(stream, Pending):
            x, branch, scale = stream
            norm = self.norm1
            x, normalized = residual_norm(x, branch, norm.weight, norm.bias, eps=norm.eps, scale=scale)
        else:
            x, normalized = stream, self.norm1(stream)
        # No name for what attention gives: it would be held while the MLP is computed.
        x, normalized = self.temporal.join(x, self.temporal.attend(self.attn, normalized), self.ls1, self.norm2, still)
        # Linear layers get three dimensions here: those of 8 bits (bitsandbytes) take no more.
        branch = self.mlp(normalized.flatten(0, 1)).unflatten(0, x.shape[:2])
        # A copy, since a sharded weight is whole within its block only.
        return Pending(x, branch, None if self.ls2 is None else self.ls2.clone())

    def _mixed(self, x: Tensor, still: bool) -> Tensor:
        return summed(self._mix(x, still))


class LiteFrameEncoder(nn.Module):
    """Video to compressed patch features in the teacher's space.

    `encoder(video[B,T,3,H,W]) -> [B,ceil(T/t),H/(p*h),W/(p*w),teacher_dim]` with compression (t,h,w), patch size p.
    T is padded to a multiple of t by repeating the last frame. H and W may differ from config.image_size as long as
    the strides divide the patch grid; positions are then resampled. The whole T is encoded as one clip. A still image
    is encoded by `still`, at a fraction of the cost of a clip of its copies.
    """

    def __init__(self, config: LiteFrameConfig):
        super().__init__()
        self.config = config
        self._form: tuple[list, list, nn.Module] | None = None  # see for_inference
        grid = config.image_size // config.patch_size
        self.patch_embed = nn.Conv2d(3, config.dim, config.patch_size, config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, config.dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.downsample = nn.ModuleDict({str(b): StridedConv(config.dim, s) for b, s in config.kernels.items()})
        self.head = nn.Linear(config.dim, config.teacher_dim)
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, Mixer):
                module.start()

    def forward(self, video: Tensor, mode: str | None = None, still: bool = False) -> Tensor:
        """[B,T,3,H,W], normalized with the config's mean and std -> [B,ceil(T/t),H/(p*h),W/(p*w),teacher_dim].

        Args:
            video: normalized frames.
            mode: compression of an elastic encoder; None is its config's `downsample`.
            still: whether T = 1 frame stands for endless frames like it, see `still`.

        Raises:
            ValueError: the input has another rank, no frame, integer pixels, or a size the strides do not divide; there
                is no such mode; or a still has more than one frame.
        """
        strides = self._strides(video, mode, still)
        return self.encode_tokens(*self.embedded(self.padded(video, window_of(strides))), strides, still)

    def still(self, images: Tensor, mode: str | None = None) -> Tensor:
        """Images [B,3,H,W] -> one slot each, [B,1,H/(p*h),W/(p*w),teacher_dim].

        The slot is that of a video in which the image has stood for ever and goes on to, without the borders that a
        clip of its copies has: a temporal convolution acts by the sum of its taps, a strided one by the sum over its
        frames, attention along time as over one frame. Arguments and errors as of `forward`.
        """
        return self(images.unsqueeze(1), mode, still=True)

    def _strides(self, video: Tensor, mode: str | None, still: bool) -> dict[int, Stride]:
        """{block: (t,h,w)} by which `forward` compresses a video; arguments and errors as there."""
        downsample = (self.config if mode is None else self.config.of_mode(mode)).downsample
        if still and (video.ndim != 5 or video.shape[1] != 1):
            raise ValueError(f"expected stills [B,1,3,H,W], got {list(video.shape)}")
        return of_a_still(downsample) if still else downsample

    def embedded(self, video: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[B,T,3,H,W] -> tokens with their positions [B,T,1+h*w,C] on a patch grid (h,w), and (h,w).

        Raises:
            ValueError: integer pixels.
        """
        if not video.is_floating_point():
            raise ValueError(f"expected frames normalized with the config's mean and std, got {video.dtype}")
        batch, frames = video.shape[:2]
        patches = self.patch_embed(video.flatten(0, 1))  # [B*T,C,h,w]
        grid = (patches.shape[2], patches.shape[3])
        patches = patches.flatten(2).transpose(1, 2)  # [B*T,h*w,C]
        cls = self.cls_token.to(patches.dtype).expand(batch * frames, -1, -1)  # [B*T,1,C]
        x = torch.cat([cls, patches], dim=1) + self._positions(grid)  # [B*T,N,C]
        return x.unflatten(0, (batch, frames)), grid

    def encode_tokens(
        self, x: Tensor, grid: tuple[int, int], downsample: Mapping[int, Stride] | None = None, still: bool = False
    ) -> Tensor:
        """Tokens with their positions [B,T,1+h*w,C], t divides T, on a grid (h,w) -> what `forward` returns.

        Args:
            x: of `embedded`.
            grid: of `embedded`.
            downsample: {block: (t,h,w)} of a mode, or of a still; None is the config's.
            still: as of `forward`.
        """
        downsample = self.config.downsample if downsample is None else downsample
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, still)
            if number in downsample:
                x, grid = self.downsample[str(number)](summed(x), grid, downsample[number])  # both smaller by this
        return self.emitted(x, grid)

    def emitted(self, stream: Tensor | Pending, grid: tuple[int, int]) -> Tensor:
        """What the last block gives, [B,T/t,1+h*w,C], t of the strides, on a grid (h,w) -> [B,T/t,h,w,teacher_dim]."""
        x = summed(stream)
        features = self.head(x[:, :, 1:].flatten(0, 1))  # [B*T/t,h*w,teacher_dim]
        return features.unflatten(0, x.shape[:2]).unflatten(2, grid)

    def extract(self, mode: str) -> "LiteFrameEncoder":
        """The ordinary student that computes what this elastic one does in a mode, on copies of its weights.

        Raises:
            ValueError: there is no such mode.
        """
        return _extracted(self, mode)

    def for_inference(self) -> nn.Module:
        """The same function in the form that encodes fastest; it takes bytes too (see inference.py).

        Made on the first call, and again after a weight has changed, been moved or cast. It shares the weights that it
        leaves as they are, computes no gradients, and is not saved: save_pretrained writes the encoder's own form.

        Returns:
            Module uint8 [B,T,3,H,W] (RGB, already of the wanted size), or normalized as `forward` takes it ->
            [B,ceil(T/t),H/(p*h),W/(p*w),teacher_dim].
        """
        # Storages, held so that no other takes their place: `weight.data = ...` leaves no trace but them.
        storages = [weight.untyped_storage() for weight in self.parameters()]
        state = [
            (id(weight), 0 if weight.is_inference() else weight._version, storage._cdata, weight.dtype)
            for weight, storage in zip(self.parameters(), storages, strict=True)
        ]
        if self._form is None or self._form[0] != state:
            self._form = (state, storages, _inference_form(self))
        return self._form[2]

    @override
    def train(self, mode: bool = True) -> "LiteFrameEncoder":
        self._form = None if mode else self._form
        return super().train(mode)

    @override
    def _apply(self, fn: Any, recurse: bool = True) -> "LiteFrameEncoder":
        self._form = None  # holds memory where the weights were
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles go without the form."""
        return {**super().__getstate__(), "_form": None}

    def checkpoint_activations(self) -> None:
        """Train with each block computed twice: about a third more time, the same numbers, a fraction of the memory."""
        for module in self.modules():
            if isinstance(module, Block):
                module.recompute = True

    def padded(self, video: Tensor, window: Stride | None = None) -> Tensor:
        """The video with its last frame repeated until t divides T, (t,h,w) the window or the config's compression.

        Raises:
            ValueError: the input has another rank, no frame, or a size the strides do not divide.
        """
        if video.ndim != 5 or video.shape[2] != 3 or video.shape[1] == 0:
            raise ValueError(f"expected a video [B,T,3,H,W] with T >= 1, got {list(video.shape)}")
        t, h, w = self.config.compression if window is None else window
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
        """[1,1+h*w,C] for a grid (h,w)."""
        side = self.config.image_size // self.config.patch_size
        return self.pos_embed if grid == (side, side) else resample_positions(self.pos_embed, (side, side), grid)

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write config.json, model.safetensors and preprocessor_config.json, each of them complete or not at all."""
        write_encoder(Path(directory), self.config, self.state_dict())

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
        encoder.load_state_dict(read_weights(folder, encoder.state_dict()), assign=True)
        return encoder.eval()


def _extracted(encoder: LiteFrameEncoder, mode: str) -> LiteFrameEncoder:
    from liteframe.models.student.elastic import extract  # builds on this file

    return extract(encoder, mode)


def _inference_form(encoder: LiteFrameEncoder) -> nn.Module:
    from liteframe.models.student.inference import make_form  # builds on this file

    return make_form(encoder)


def resample_positions(table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """A position table for another patch grid: [1,1+h*w,C] -> [1,1+h'*w',C], bicubic; the cls position stays."""
    # Bicubic resampling needs at least float32.
    patches = table[:, 1:].to(torch.promote_types(table.dtype, torch.float32))
    patches = patches.unflatten(1, grid).permute(0, 3, 1, 2)  # [1,C,h,w]
    patches = F.interpolate(patches, size=new_grid, mode="bicubic", antialias=True)  # [1,C,h',w']
    patches = patches.flatten(2).transpose(1, 2).to(table.dtype)  # [1,h'*w',C]
    return torch.cat([table[:, :1], patches], dim=1)
