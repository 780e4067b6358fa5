"""The form of a student that encodes fastest: the same features, fewer bytes moved. `encoder.for_inference()` makes it.

LayerScale is folded into the last layers of attention and MLP, the normalization of pixels into the patch embedding, so
that frames come as bytes; GELU is applied where a matrix product is written; positions are computed once a frame size.
A form is never saved: encoder folders and exported checkpoints hold the training form, from which it is made.

Shapes: B videos, T frames, H x W pixels, h x w patch grid, C channels. This file travels inside exported models.
"""

import copy
import functools
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.student.strides import Stride, window_of

# Taken from bytes before they meet rounded weights: exact in 16 bits, and leaves them centered as normalized ones are.
MIDDLE = 128.0
MOST_SIZES = 16  # frame sizes whose positions are kept
HALF = (torch.bfloat16, torch.float16)


class InferenceEncoder(nn.Module):
    """A student without what only training needs.

    Args:
        encoder: see `is_plain`. Weights that stay as they are are shared, the others copied.
    """

    def __init__(self, encoder: LiteFrameEncoder):
        super().__init__()
        self.config = encoder.config
        shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in encoder.parameters()}
        self.body = copy.deepcopy(encoder, shared).eval()
        block: Any
        for block in self.body.blocks:
            block.attn.proj, block.ls1 = _scaled_linear(block.attn.proj, block.ls1), None
            block.mlp = InferenceMlp(block.mlp.fc1, _scaled_linear(block.mlp.fc2, block.ls2))
            block.ls2 = None
        weight, bias = _of_bytes(encoder)
        self.byte_embed = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        self.byte_embed.weight, self.byte_embed.bias = _frozen(weight), _frozen(bias)
        self._starts: dict[tuple, tuple[Tensor, Tensor]] = {}
        self.eval()

    def forward(self, video: Tensor, mode: str | None = None, still: bool = False) -> Tensor:
        """Uint8 [B,T,3,H,W], or normalized with the config's mean and std -> as the encoder.

        Args:
            video: frames.
            mode: as of the encoder.
            still: as of the encoder.

        Raises:
            ValueError: the input has another rank or dtype, no frame, or a size the strides do not divide; there is no
                such mode; or a still has more than one frame.
        """
        strides = self.body._strides(video, mode, still)
        video = _checked(self.body, video, window_of(strides))
        tokens, grid = self._patches(video.flatten(0, 1))  # [B*T,h*w,C]
        cls, positions = self._start(grid)  # [1,1,C], [1,h*w,C]
        if torch.compiler.is_compiling():  # one kernel writes all of it
            x = torch.cat([cls.expand(tokens.shape[0], -1, -1), tokens + positions], dim=1)
        else:
            dtype = torch.promote_types(tokens.dtype, positions.dtype)  # two within autocast
            x = tokens.new_empty(tokens.shape[0], 1 + tokens.shape[1], tokens.shape[2], dtype=dtype)
            x[:, :1] = cls
            torch.add(tokens, positions, out=x[:, 1:])
        return self.body.encode_tokens(x.unflatten(0, video.shape[:2]), grid, strides, still)

    def _patches(self, frames: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[M,3,H,W] -> embedded patches [M,h*w,C], and (h,w)."""
        if frames.is_floating_point():
            embedded = self.body.patch_embed(frames)  # [M,C,h,w]
            return embedded.flatten(2).transpose(1, 2), (embedded.shape[2], embedded.shape[3])
        p = self.config.patch_size
        grid = (frames.shape[2] // p, frames.shape[3] // p)
        patches = frames.unflatten(3, (grid[1], p)).unflatten(2, (grid[0], p))  # [M,3,h,p,w,p]
        patches = patches.permute(0, 2, 4, 1, 3, 5)  # [M,h,w,3,p,p]
        dtype = self.byte_embed.weight.dtype
        if torch.compiler.is_compiling():
            centered = patches.to(dtype) - MIDDLE
        else:  # cast, moved and centered in one step
            centered = torch.empty(patches.shape, dtype=dtype, device=frames.device)
            torch.sub(patches, MIDDLE, out=centered)
        return self.byte_embed(centered.flatten(3).flatten(1, 2)), grid

    def _start(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The cls token with its position [1,1,C], and the patches' positions [1,h*w,C], for a grid (h,w)."""
        table = self.body.pos_embed
        key = (grid, table.device, table.dtype)
        if torch.compiler.is_compiling() or key not in self._starts:
            whole = self.body._positions(grid)  # [1,1+h*w,C]
            start = (self.body.cls_token + whole[:, :1], whole[:, 1:])
            if torch.compiler.is_compiling():
                return start
            if len(self._starts) >= MOST_SIZES:
                self._starts.clear()
            self._starts[key] = start
        return self._starts[key]


class InferenceMlp(nn.Module):
    """Two linear layers around a GELU, which the first product's kernel applies: oneDNN's on a CPU, cuBLAS's on a GPU.

    On a GPU it does so in 16 bits. There cuBLAS has the tanh form, which is 5e-4 at most from the erf form, less than
    rounding the product to bfloat16 in between would change (`_addmm_activation` is torch's own way to it; its
    TransformerEncoderLayer takes it).
    """

    def __init__(self, fc1: nn.Linear, fc2: nn.Linear):
        super().__init__()
        self.fc1, self.fc2 = fc1, fc2

    def forward(self, x: Tensor) -> Tensor:
        """[M,N,C] -> [M,N,C]."""
        if x.is_cuda and x.dtype in HALF:
            hidden = torch._addmm_activation(self.fc1.bias, x.flatten(0, 1), self.fc1.weight.t(), use_gelu=True)
            return self.fc2(hidden).unflatten(0, x.shape[:2])
        if x.device.type == "cpu" and not torch.compiler.is_compiling() and _in_onednn(x.dtype):
            return self.fc2(torch.ops.mkldnn._linear_pointwise(x, self.fc1.weight, self.fc1.bias, "gelu", [], "none"))
        return self.fc2(F.gelu(self.fc1(x)))


@functools.cache
def _in_onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies numbers of this type here, with an erf GELU behind; torch.compile takes it, too."""
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    emulated = dtype == torch.bfloat16 and there and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return there and dtype in (torch.float32, torch.bfloat16) and not emulated


class ByteEncoder(nn.Module):
    """An encoder whose weights cannot be folded, as it is, that takes bytes too."""

    def __init__(self, encoder: LiteFrameEncoder):
        super().__init__()
        self.config, self.body = encoder.config, encoder

    def forward(self, video: Tensor, mode: str | None = None, still: bool = False) -> Tensor:
        """As InferenceEncoder."""
        if video.dtype == torch.uint8:
            video = normalized(video, self.config, self.body.patch_embed.weight.dtype)
        return self.body(video, mode, still)


def normalized(video: Tensor, config: LiteFrameConfig, dtype: torch.dtype) -> Tensor:
    """Uint8 [...,3,H,W] -> what a training form takes, on the same device, in `dtype`."""
    mean, std = (
        torch.stack([torch.full((), value, device=video.device) for value in values]).view(3, 1, 1)
        for values in (config.image_mean, config.image_std)
    )
    return video.to(torch.float32).div_(255).sub_(mean).div_(std).to(dtype)


def make_form(encoder: LiteFrameEncoder) -> nn.Module:
    """What `encoder.for_inference()` keeps and returns."""
    return InferenceEncoder(encoder) if is_plain(encoder) else ByteEncoder(encoder)


def is_plain(encoder: LiteFrameEncoder) -> bool:
    """Whether weights can be folded: one dtype, one device, nothing quantized, adapted, sharded, hooked, compiled."""
    parameters = list(encoder.parameters())
    kinds = {(type(p), p.dtype, p.device) for p in parameters}
    blocks: Iterable[Any] = encoder.blocks
    layers = [layer for block in blocks for layer in (block.attn.proj, block.mlp.fc1, block.mlp.fc2)]
    hooked = any(
        module._forward_hooks or module._forward_pre_hooks or {"forward", "_compiled_call_impl"} & vars(module).keys()
        for module in encoder.modules()
    )
    return (
        len(kinds) == 1
        and type(parameters[0]) in (nn.Parameter, FakeTensor)  # a subclass may hold anything
        and parameters[0].is_floating_point()
        and parameters[0].device.type != "meta"
        and all(type(layer) is nn.Linear for layer in layers)
        and type(encoder.patch_embed) is nn.Conv2d
        and not hooked
    )


def _checked(encoder: LiteFrameEncoder, video: Tensor, window: Stride) -> Tensor:
    if not video.is_floating_point() and video.dtype != torch.uint8:
        raise ValueError(f"expected frames in uint8, or normalized with the config's mean and std, got {video.dtype}")
    return encoder.padded(video, window)


@torch.no_grad()
def _scaled_linear(layer: nn.Linear, scale: Tensor) -> nn.Linear:
    """The layer followed by a factor a channel, as one layer."""
    scaled = nn.Linear(layer.in_features, layer.out_features, device="meta")
    scaled.weight = _frozen((_wide(layer.weight) * _wide(scale)[:, None]).to(layer.weight.dtype))
    scaled.bias = _frozen((_wide(layer.bias) * _wide(scale)).to(layer.bias.dtype))
    return scaled


@torch.no_grad()
def _of_bytes(encoder: LiteFrameEncoder) -> tuple[Tensor, Tensor]:
    """Weight [C,3*p*p] and bias [C] of the patch embedding for bytes less MIDDLE, in the order color, row, column."""
    weight = _wide(encoder.patch_embed.weight)  # [C,3,p,p]
    assert encoder.patch_embed.bias is not None
    mean = weight.new_tensor(encoder.config.image_mean)
    std = weight.new_tensor(encoder.config.image_std)
    offset = weight.sum((2, 3)) @ ((MIDDLE / 255 - mean) / std)  # [C]
    folded = weight / (255 * std[:, None, None])
    dtype = encoder.patch_embed.weight.dtype
    return folded.flatten(1).to(dtype), (_wide(encoder.patch_embed.bias) + offset).to(dtype)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
