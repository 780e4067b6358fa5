"""The kernels one by one, against cuDNN and what torch.compile makes of their references.

Shapes: T frames, N = 1 + side*side tokens a frame (cls first), C channels.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from liteframe_kernels import residual_norm, strided_conv, temporal_conv, weighted_average_pool
from liteframe_kernels.residual_norm.reference import residual_norm_reference
from liteframe_kernels.strided_conv.reference import strided_conv_reference
from liteframe_kernels.temporal_conv.reference import temporal_conv_reference
from torch import Tensor

from liteframe.bench.comparison import Comparison

TAPS = 3
WINDOW = (4, 2, 2)


def comparisons(
    device: torch.device,
    dtype: torch.dtype,
    *,
    frames: int,
    side: int,
    channels: int,
    teacher_channels: int,
    compiled: bool,
) -> Iterator[Comparison]:
    """All kernels: convs at the student's width, pooling at the teacher's; `frames` a multiple of 4, `side` even."""
    sizes: dict[str, Any] = {"frames": frames, "side": side, "compiled": compiled}
    yield from temporal_conv_comparisons(device, dtype, channels=channels, **sizes)
    yield from residual_norm_comparisons(device, dtype, channels=channels, **sizes)
    yield from strided_conv_comparisons(device, dtype, channels=channels, **sizes)
    yield from weighted_average_pool_comparisons(device, dtype, channels=teacher_channels, **sizes)


def temporal_conv_comparisons(
    device: torch.device, dtype: torch.dtype, *, frames: int, side: int, channels: int, compiled: bool
) -> Iterator[Comparison]:
    """The plain and the residual conv over `[1,T,N,C]`."""
    shape = (1, frames, 1 + side * side, channels)

    def inputs() -> list[Tensor]:
        x = torch.randn(shape, device=device, dtype=dtype)
        weight, bias = torch.randn(channels, TAPS, device=device), torch.randn(channels, device=device)
        return [v.requires_grad_() for v in (x, weight, bias)]

    for label in ("plain", "residual"):
        residual = label == "residual"
        reference = functools.partial(temporal_conv_reference, residual=residual)
        calls: dict[str, Callable] = {
            "triton": functools.partial(temporal_conv, backend="triton", residual=residual),
            "three shifts, eager": reference,
        }
        if compiled:
            calls["three shifts, torch.compile"] = torch.compile(reference, dynamic=False)
        if not residual:
            calls["F.conv1d, channels first"] = functools.partial(_conv1d, last=False)
            calls["F.conv1d, channels last"] = functools.partial(_conv1d, last=True)
        elements = math.prod(shape)
        yield Comparison(
            "temporal_conv",
            label,
            shape,
            inputs,
            reference,
            calls,
            tensor_bytes=elements * dtype.itemsize,
            floor={"forward": 2, "backward": 3},
            flops={"forward": 2 * TAPS * elements, "backward": 4 * TAPS * elements},
        )


def _conv1d(x: Tensor, weight: Tensor, bias: Tensor, *, last: bool) -> Tensor:
    """CuDNN's depthwise conv1d; the rearrangement into its layout counts, as it would in a model."""
    batch, frames, tokens, channels = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(batch * tokens, channels, frames)  # [B*N,C,T]
    if last:
        rows = rows.transpose(1, 2).contiguous().transpose(1, 2)
    y = F.conv1d(rows, weight[:, None].to(x.dtype), bias.to(x.dtype), padding=TAPS // 2, groups=channels)
    return y.unflatten(0, (batch, tokens)).permute(0, 3, 1, 2)  # [B,T,N,C]


def residual_norm_comparisons(
    device: torch.device, dtype: torch.dtype, *, frames: int, side: int, channels: int, compiled: bool
) -> Iterator[Comparison]:
    """What a block does between two matrix products, over `[1,T,N,C]`, with and without the temporal conv.

    In training the stream and all parameters are in float32, as autocast leaves them, in inference all is in `dtype`.
    """
    shape = (1, frames, 1 + side * side, channels)
    elements = math.prod(shape)
    for use, wide in (("training", torch.float32), ("inference", dtype)):
        for conv, taps in (("with conv", TAPS), ("without conv", 0)):

            def inputs(wide: torch.dtype = wide, taps: int = taps, trained: bool = use == "training") -> list[Tensor]:
                large = [torch.randn(shape, device=device, dtype=kind) for kind in (dtype, wide)]
                sizes = [(channels,)] * 3 + ([(channels, taps), (channels,)] if taps else [])
                vectors = [torch.randn(size, device=device, dtype=wide) for size in sizes]
                return [v.requires_grad_(trained) for v in (*large, *vectors)]

            calls: dict[str, Callable] = {
                "triton": _chain(functools.partial(residual_norm, backend="triton")),
                "chain, eager": _chain(residual_norm_reference),
            }
            if compiled:
                calls["chain, torch.compile"] = torch.compile(_chain(residual_norm_reference), dynamic=False)
            passes = 1 + wide.itemsize / dtype.itemsize  # over a branch and a stream
            directions = {"forward": 2, "backward": 3} if use == "training" else {"forward": 2}
            per_element = 12 + 2 * taps  # scale, sums, statistics, norm
            yield Comparison(
                "residual_norm",
                f"{conv}, {use}",
                shape,
                inputs,
                _chain(residual_norm_reference),
                calls,
                tensor_bytes=elements * dtype.itemsize,
                floor={direction: times * passes for direction, times in directions.items()},
                flops={direction: times * per_element * elements // 2 for direction, times in directions.items()},
            )


def _chain(function: Callable) -> Callable:
    """The function of branch, stream, norm's weight and bias, scale, taps and their bias, in this order."""

    def call(branch: Tensor, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, *conv: Tensor) -> tuple:
        named = dict(zip(("conv_weight", "conv_bias"), conv, strict=False))
        return function(x, branch, weight, bias, eps=1e-6, scale=scale, **named)

    return call


def strided_conv_comparisons(
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


def weighted_average_pool_comparisons(
    device: torch.device, dtype: torch.dtype, *, frames: int, side: int, channels: int, compiled: bool
) -> Iterator[Comparison]:
    """Pooling of a teacher's tokens `[1,frames,1+side*side,channels]`, weighted by their cls token."""
    shape = (1, frames, 1 + side * side, channels)

    def inputs() -> list[Tensor]:
        return [torch.randn(shape, device=device, dtype=dtype)]

    def pool(backend: str) -> Callable:
        def call(tokens: Tensor) -> Tensor:
            patches = tokens[:, :, 1:].unflatten(2, (side, side))
            return weighted_average_pool(patches, query=tokens[:, :, 0], kernel=WINDOW, backend=backend)

        return call

    calls = {"triton": pool("triton"), "reference, eager": pool("reference")}
    if compiled:
        calls["reference, torch.compile"] = torch.compile(pool("reference"), dynamic=False)
    elements = math.prod(shape)
    yield Comparison(
        "weighted_average_pool",
        "cls query",
        shape,
        inputs,
        pool("reference"),
        calls,
        tensor_bytes=elements * dtype.itemsize,
        floor={"forward": 1 + 1 / math.prod(WINDOW)},
        flops={"forward": 4 * elements},
    )
