"""strided_conv against cuDNN's conv3d and the compiled window formulation."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from liteframe_kernels.strided_conv.op import strided_conv
from liteframe_kernels.strided_conv.reference import strided_conv_reference
from torch import Tensor

from liteframe.bench.comparison import Comparison


def comparisons(
    device: torch.device, dtype: torch.dtype, *, frames: int, side: int, channels: int, compiled: bool
) -> Iterator[Comparison]:
    """The two compressions of the student, on the tokens of `side` x `side` patches and a cls token."""
    for kernel, time, space in (((2, 2, 2), frames, side), ((2, 1, 1), frames // 2, side // 2)):

        def inputs(kernel: tuple = kernel, time: int = time, space: int = space) -> list[Tensor]:
            tokens = torch.randn(1, time, 1 + space * space, channels, device=device, dtype=dtype)
            weight, bias = torch.randn(channels, *kernel, device=device), torch.randn(channels, device=device)
            return [v.requires_grad_() for v in (tokens, weight, bias)]

        calls: dict[str, Callable] = {"triton": _on_tokens("triton"), "windows, eager": _on_tokens("reference")}
        if compiled:
            calls["windows, torch.compile"] = torch.compile(_on_tokens("reference"), dynamic=False)
        calls["F.conv3d, channels last"] = _conv3d
        written = 1 / math.prod(kernel)
        shape = (1, time, 1 + space * space, channels)
        elements = math.prod(shape)
        yield Comparison(
            "strided_conv",
            "x".join(map(str, kernel)),
            shape,
            inputs,
            _exact,
            calls,
            tensor_bytes=elements * dtype.itemsize,
            floor={"forward": 1 + written, "backward": 2 + written},
            flops={"forward": 2 * elements, "backward": 4 * elements},
        )


def _split(tokens: Tensor) -> tuple[Tensor, Tensor]:
    side = math.isqrt(tokens.shape[2] - 1)
    return tokens[:, :, 1:].unflatten(2, (side, side)), tokens[:, :, 0]


def _on_tokens(backend: str) -> Callable:
    def call(tokens: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        patches, cls = _split(tokens)
        return strided_conv(patches, weight, bias, cls=cls, backend=backend)

    return call


def _exact(tokens: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    patches, cls = _split(tokens)
    y, cls_y = strided_conv_reference(patches, weight, bias, cls=cls)
    return y, cls_y


def _conv3d(tokens: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """CuDNN's depthwise conv3d on patches that lie channels last, and its kernel summed over space on cls."""
    patches, cls = _split(tokens)
    w, b = weight[:, None].to(tokens.dtype), bias.to(tokens.dtype)
    stride = weight.shape[1:]
    y = F.conv3d(patches.movedim(-1, 1), w, b, stride=stride, groups=weight.shape[0]).movedim(1, -1)
    summed = weight.sum((2, 3))[:, None].to(tokens.dtype)
    cls_y = F.conv1d(cls.mT, summed, b, stride=stride[0], groups=weight.shape[0]).mT
    return y, cls_y
