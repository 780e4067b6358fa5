"""An encoder as one graph for every number of clips, frames and pixels, and proof that the graph computes the same.

Tracing cannot follow a branch on a size. The encoder has two, which are taken out here without changing a result:
positions are always resampled (bicubic at scale 1 is the identity), and what a temporal mixer adds is multiplied by 0
instead of leaving it out where one frame is left.
"""

import contextlib
import copy
import os
import statistics
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from liteframe_kernels import temporal_conv
from torch import Tensor, nn
from torch.export import Dim
from typing_extensions import override

from liteframe.models.student.attention_mixers import SpaceTime, TemporalAttention, TemporalBlock
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.encoder import LiteFrameEncoder, resample_positions
from liteframe.models.student.inference import InferenceEncoder
from liteframe.models.student.mixer import Mixer, NoMixer, ResidualMixer
from liteframe.models.student.mixers import DenseConv, TemporalConv

# Bounds that tracing asks for; nothing is allocated for them.
MOST_CLIPS, MOST_SLOTS, MOST_TOKENS = 4096, 1024, 1024


class _GatedTemporalConv(TemporalConv):
    """TemporalConv without its branch."""

    join = Mixer.join

    @override
    def forward(self, x: Tensor) -> Tensor:
        several = _several_frames(x)
        return temporal_conv(x, self.weight * several, self.bias * several, residual=True, backend="reference")


class _Gated(ResidualMixer):
    """A residual mixer without its branch."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x + _several_frames(x) * self.added(x)


class _GatedAttention(_Gated, TemporalAttention):
    pass


class _GatedBlock(_Gated, TemporalBlock):
    pass


class _GatedDenseConv(_Gated, DenseConv):
    pass


def _several_frames(x: Tensor) -> Tensor:
    """1 where [B,T,N,C] has several frames, 0 where it has one."""
    return (torch.ones_like(x[0, :, 0, 0]).sum() > 1).to(x.dtype)


# Each mixer's class -> its class without branches.
TRACEABLE: dict[type[Mixer], type[Mixer]] = {
    TemporalConv: _GatedTemporalConv,
    NoMixer: NoMixer,
    TemporalAttention: _GatedAttention,
    TemporalBlock: _GatedBlock,
    DenseConv: _GatedDenseConv,
    SpaceTime: SpaceTime,
}


def traceable(encoder: LiteFrameEncoder) -> InferenceEncoder:
    """A copy in inference form for tracing: normalized [B,T,3,H,W] -> [B,T/t,h,w,C].

    T must be a multiple of t (repeat the last frame before).
    """
    copied = InferenceEncoder(copy.deepcopy(encoder))
    del copied.byte_embed  # graphs take normalized pixels, and would keep its weights for nothing
    for mixer in copied.modules():
        if isinstance(mixer, Mixer):
            mixer.__class__ = TRACEABLE[type(mixer)]  # the same parameters, another forward
    copied.body._positions = types.MethodType(_resampled_positions, copied.body)  # type: ignore[method-assign]
    return copied


class Sized(nn.Module):
    """A traceable encoder behind a reshape that only whole slots and strides pass: ONNX would cut off what is beyond.

    torch.export's programs check their sizes themselves.
    """

    def __init__(self, encoder: InferenceEncoder):
        super().__init__()
        self.encoder = encoder
        self.eval()

    def forward(self, video: Tensor) -> Tensor:
        """Features of a video [B,T,3,H,W]."""
        (clips, frames, channels, height, width), config = video.shape, self.encoder.config
        t, h, w = config.compression
        row, column = h * config.patch_size, w * config.patch_size
        video = video.reshape(clips, frames // t, t, channels, height // row, row, width // column, column)
        return self.encoder(video.reshape(clips, frames, channels, height, width))


def _resampled_positions(self: LiteFrameEncoder, grid: tuple[int, int]) -> Tensor:
    side = self.config.image_size // self.config.patch_size
    return resample_positions(self.pos_embed, (side, side), grid)


def example(config: LiteFrameConfig, dtype: torch.dtype) -> Tensor:
    """A video to trace with: no size is one, and height and width differ."""
    t, h, w = config.compression
    return torch.zeros(2, 2 * t, 3, 3 * h * config.patch_size, 2 * w * config.patch_size, dtype=dtype)


def dynamic_shapes(config: LiteFrameConfig) -> dict[str, Any]:
    """Which sizes of the input `video` vary, and in which steps."""
    t, h, w = config.compression
    p = config.patch_size
    return {
        "video": {
            0: Dim("clips", min=1, max=MOST_CLIPS),
            1: t * Dim("slots", min=1, max=MOST_SLOTS),
            3: p * h * Dim("rows", min=1, max=MOST_TOKENS),
            4: p * w * Dim("columns", min=1, max=MOST_TOKENS),
        }
    }


def check_shapes(config: LiteFrameConfig) -> list[tuple[int, ...]]:
    """Sizes [B,T,3,H,W] at which an export is compared: one slot and a whole clip, each at three frame sizes."""
    t, h, w = config.compression
    row, column, side = config.patch_size * h, config.patch_size * w, config.image_size
    frames = [
        (side, side),
        (row * max(1, side // row // 2), column * max(1, side // column * 3 // 4)),
        (2 * row, column),
    ]
    lengths = sorted({t, max(t, config.clip_frames // t * t)})
    return [(1 + (length == t), length, 3, *size) for length in lengths for size in frames]


# Largest difference, relative to the largest feature.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2}
RUNS = 5


def compare_graph(
    encoder: LiteFrameEncoder, run: Callable[[Tensor], Tensor], dtype: torch.dtype, runtime: dict[str, str]
) -> dict[str, Any]:
    """The parity report of a graph: float32 features of the encoder against those of the graph, on the CPU.

    Args:
        encoder: in float32.
        run: the graph, [B,T,3,H,W] in `dtype` -> [B,T/t,h,w,C].
        dtype: of the graph.
        runtime: name and version of what runs it.

    Raises:
        ValueError: features differ by more than TOLERANCES allow, or their shapes do.
    """
    generator = torch.Generator().manual_seed(0)
    tolerance = TOLERANCES[dtype]
    cases = []
    for shape in check_shapes(encoder.config):
        video = torch.randn(shape, generator=generator).to(dtype)
        with torch.inference_mode():
            expected = encoder(video.float())
            _, torch_ms = _timed(encoder.for_inference(), video.float())
        found, graph_ms = _timed(run, video)
        if found.shape != expected.shape:
            raise ValueError(
                f"features of the graph at {list(shape)}: shape {list(found.shape)}, expected {list(expected.shape)}"
            )
        scale = expected.abs().max().item()
        difference = (found.float() - expected).abs().max().item() / scale
        if not difference <= tolerance:
            raise ValueError(
                f"features of the graph at {list(shape)} differ by {difference:.3g} of the largest feature, more than "
                f"{tolerance:g}; nothing is written"
            )
        cases.append(
            {
                "video": list(shape),
                "features": list(expected.shape),
                "largest_feature": scale,
                "relative_difference": difference,
                "torch_ms": round(torch_ms, 3),
                "graph_ms": round(graph_ms, 3),
            }
        )
    return {
        "max_relative_difference": max(case["relative_difference"] for case in cases),
        "tolerance": tolerance,
        "dtype": str(dtype).removeprefix("torch."),
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "runtime": {**runtime, "torch": torch.__version__},
        "cases": cases,
    }


def check_inputs(
    encoder: LiteFrameEncoder,
    run: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
    refusals: tuple[type[Exception], ...],
) -> dict[str, str]:
    """What a graph does with videos unlike the one that it was traced with: it takes them as the encoder, or refuses.

    Args:
        encoder: in float32.
        run: the graph, on the CPU.
        dtype: of the graph.
        refusals: what it raises for inputs that it does not take.

    Returns:
        Kind of video -> "taken" or "refused".

    Raises:
        ValueError: the graph answers where the encoder refuses, or answers something else.
    """
    found = {}
    for kind, video in _unlike(encoder.config, dtype).items():
        try:
            with _silent():
                features = run(video)
        except refusals:
            found[kind] = "refused"
            continue
        expected = _encoded(encoder, video.float()) if video.dtype == dtype else None
        if expected is None or features.shape != expected.shape:
            largest = float("nan")
        else:
            largest = ((features.float() - expected).abs().max() / expected.abs().max()).item()
        if not largest <= TOLERANCES[dtype]:
            raise ValueError(
                f"the graph neither refuses a video {kind} ({list(video.shape)}, {video.dtype}) nor takes it as the "
                "encoder does; nothing is written"
            )
        found[kind] = "taken"
    return found


def _encoded(encoder: LiteFrameEncoder, video: Tensor) -> Tensor | None:
    """The encoder's features, None where it refuses the video."""
    try:
        with torch.inference_mode():
            return encoder(video)
    except ValueError:
        return None


def _unlike(config: LiteFrameConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Videos by what is unlike a contiguous one of whole slots and strides in `dtype`."""
    t, h, w = config.compression
    row, column = config.patch_size * h, config.patch_size * w
    video = torch.randn(2, t, 3, 2 * row, column, generator=torch.Generator().manual_seed(1)).to(dtype)
    around = torch.full([size + 2 for size in video.shape], float("nan"), dtype=dtype)
    cut = around[1:-1, 1:-1, 1:-1, 1:-1, 1:-1]
    cut.copy_(video)
    kinds = {
        "with its channels last": video.movedim(2, -1).contiguous().movedim(-1, 2),
        "with its channels before its frames": video.transpose(1, 2).contiguous().transpose(1, 2),
        "cut out of a larger one": cut,
        "of one frame repeated": video[:, :1].expand(-1, t, -1, -1, -1),
        "with rows that are no multiple of the stride": video[:, :, :, : row + row // 2],
        "of one channel": video[:, :, :1],
        "without its clips": video[0],
    }
    for other in (torch.float16, torch.float32, torch.float64):
        if other != dtype:
            kinds[f"in {str(other).removeprefix('torch.')}"] = video.to(other)
    if t > 1:
        kinds["with frames that are no multiple of a slot"] = torch.cat([video, video[:, :1]], dim=1)
    return kinds


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Standard error shut within the block, also to the C++ runtimes, which write each refusal there."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _timed(call: Callable[[Tensor], Tensor], video: Tensor) -> tuple[Tensor, float]:
    """The result, and the median of RUNS calls after it in milliseconds."""
    result = call(video)
    samples = []
    for _ in range(RUNS):
        began = time.perf_counter()
        call(video)
        samples.append(1000 * (time.perf_counter() - began))
    return result, statistics.median(samples)
