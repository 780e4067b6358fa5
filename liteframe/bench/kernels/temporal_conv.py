"""temporal_conv against cuDNN, a compiled three-shift formulation and, for the causal case, causal-conv1d."""

import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from liteframe_kernels.temporal_conv.op import temporal_conv
from liteframe_kernels.temporal_conv.reference import temporal_conv_reference
from torch import Tensor

from liteframe.bench.comparison import Comparison

TAPS = 3


def comparisons(
    device: torch.device, dtype: torch.dtype, *, frames: int, tokens: int, channels: int, compiled: bool
) -> Iterator[Comparison]:
    """The plain, the residual and the causal conv over `[1,frames,tokens,channels]`."""
    shape = (1, frames, tokens, channels)

    def inputs() -> list[Tensor]:
        x = torch.randn(shape, device=device, dtype=dtype)
        weight, bias = torch.randn(channels, TAPS, device=device), torch.randn(channels, device=device)
        return [v.requires_grad_() for v in (x, weight, bias)]

    for label in ("plain", "residual", "causal"):
        options: dict[str, Any] = {"residual": label == "residual", "causal": label == "causal"}
        reference = functools.partial(temporal_conv_reference, **options)
        calls: dict[str, Callable] = {
            "triton": functools.partial(temporal_conv, backend="triton", **options),
            "three shifts, eager": reference,
        }
        if compiled:
            calls["three shifts, torch.compile"] = torch.compile(reference, dynamic=False)
        if label != "residual":
            calls["F.conv1d, channels first"] = functools.partial(_conv1d, causal=label == "causal", last=False)
            calls["F.conv1d, channels last"] = functools.partial(_conv1d, causal=label == "causal", last=True)
        if label == "causal" and importlib.util.find_spec("causal_conv1d") is not None:
            calls["causal-conv1d"] = _causal_conv1d
        elements = frames * tokens * channels
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


def _conv1d(x: Tensor, weight: Tensor, bias: Tensor, *, causal: bool, last: bool) -> Tensor:
    """CuDNN's depthwise conv1d; the rearrangement into its layout counts, as it would in a model."""
    batch, frames, tokens, channels = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(batch * tokens, channels, frames)
    if last:
        rows = rows.transpose(1, 2).contiguous().transpose(1, 2)
    left = TAPS - 1 if causal else TAPS // 2
    y = F.conv1d(rows, weight[:, None].to(x.dtype), bias.to(x.dtype), padding=left, groups=channels)[..., :frames]
    return y.unflatten(0, (batch, tokens)).permute(0, 3, 1, 2)


def _causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Dao-AILab's CUDA kernel, channels last."""
    from causal_conv1d import causal_conv1d_fn

    batch, frames, tokens, channels = x.shape
    rows = x.transpose(1, 2).reshape(batch * tokens, frames, channels).transpose(1, 2)
    y = causal_conv1d_fn(rows, weight.to(x.dtype), bias.to(x.dtype))
    return y.unflatten(0, (batch, tokens)).permute(0, 3, 1, 2)
