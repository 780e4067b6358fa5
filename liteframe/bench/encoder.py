"""Latency, memory and FLOP rate of encoders side by side: right first, then timed, compiled block by block."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from liteframe_kernels import force_backend
from liteframe_kernels.backend import triton
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from liteframe.bench.comparison import NETWORK_TOLERANCE, NO_GPU, failure, relative_error, verdict
from liteframe.bench.timing import Contender, as_milliseconds, copy_bandwidth, machine, matmul_rate, time_side_by_side
from liteframe.distill.speed import compile_blocks
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.cost import INTERNVIT_300M, Cost, VitShape, cost
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.student.inference import normalized
from liteframe.models.student.mixers import Mixer
from liteframe.models.teacher.base import Teacher, TeacherFeatures
from liteframe.models.teacher.load import load_teacher

# Times a block moves its tokens when all that lies between the matmuls is fused (the MLP's hidden layer counts 4).
FUSED_PASSES = 28


@dataclass(frozen=True)
class Setup:
    """What to measure: sizes, dtype, protocol. `tiny` replaces the models by small ones that a CPU runs."""

    frames: tuple[int, ...]
    size: int
    dtype: torch.dtype
    warmup: int
    runs: int
    compiled: bool
    tiny: bool

    @property
    def student_config(self) -> LiteFrameConfig:
        """The student to measure."""
        small = {"dim": 64, "depth": 4, "heads": 2, "teacher_dim": 64, "downsample": {1: (2, 2, 2), 2: (2, 1, 1)}}
        return LiteFrameConfig(**small) if self.tiny else LiteFrameConfig()  # type: ignore[arg-type]


@dataclass(frozen=True)
class Encoder:
    """An encoder to measure.

    Attributes:
        name: in the table.
        shape: what its cost is reckoned from; a student's is its config, and says how many frames it takes at once.
        build: makes it, float32 on the CPU.
        variants: name, backend of the kernels (None: the encoder's own choice), whether its blocks are compiled.
        form: makes what is measured of the encoder in its dtype on its device; what is right is still the encoder's.
        of_bytes: whether frames come as bytes.
    """

    name: str
    shape: LiteFrameConfig | VitShape
    build: Callable[[], nn.Module]
    variants: tuple[tuple[str, str | None, bool], ...]
    form: Callable[[Any], nn.Module] = lambda encoder: encoder
    of_bytes: bool = False


TEACHER, PLAIN, STUDENT, FORM = "teacher", "student without compression", "student", "student, inference form"
PYTORCH = (("eager", "reference", False), ("compiled", "reference", True))
KERNELS = (("kernels", "triton", False), ("kernels, compiled", "triton", True))
PROBE = 16  # frames at the start of a video whose features are compared


def measure_encoders(
    setup: Setup, device: torch.device, progress: Callable[[str], None], encoders: Sequence[Encoder] | None = None
) -> dict[str, Any]:
    """A record: one row for each encoder and number of frames, and the student's time by part.

    The matmul rate is the better of two measurements, before and after the encoders.

    Args:
        setup: sizes and protocol.
        device: where.
        progress: told what comes next.
        encoders: what to measure; None: `built_in(setup)`.

    Raises:
        ValueError: an encoder ran faster than the matmul rate, so one of both was measured wrongly.
    """
    protocol = {"warmup": setup.warmup, "runs": setup.runs}
    peak = matmul_rate(device, setup.dtype, **protocol)
    bandwidth = copy_bandwidth(device, 2**29 if device.type == "cuda" else 2**22, **protocol)
    rows = list(encoder_rows(setup, device, progress, built_in(setup) if encoders is None else encoders))
    parts = list(student_parts(setup, device, progress))
    peak = max(peak, matmul_rate(device, setup.dtype, **protocol))
    for row in rows:
        add_matmul_share(row, peak)
    return {
        "machine": machine(device),
        "setup": _described(setup),
        "matmul_flop_per_s": peak,
        "copy_bytes_per_s": bandwidth,
        "rows": rows,
        "parts": parts,
    }


def encoder_rows(
    setup: Setup, device: torch.device, progress: Callable[[str], None], encoders: Sequence[Encoder]
) -> Iterator[dict[str, Any]]:
    """A row for each number of frames, encoder and variant, in this order: right, and then timed; or why not.

    The student takes clips of clip_frames as a batch, the teacher frames as a batch; random weights. Of what is timed,
    the features of the first frames are compared with those of the same weights in float32 without kernels.
    """
    models = {one.name: one.build().eval().requires_grad_(False).to(device) for one in encoders}
    teacher: dict[tuple[int, bool], float] = {}
    for frames in setup.frames:
        for one in encoders:
            exact = models[one.name]
            video = _video(one, frames, setup, device)
            with torch.inference_mode(), force_backend("reference"):
                truth = features(exact(normalized_video(video[:1, :PROBE], one.shape)))
                model = one.form(copy.deepcopy(exact).to(setup.dtype))
            price, nbytes = cost(one.shape, frames, setup.size), fused_bytes(one.shape, frames, setup)
            for variant, backend, compiled in one.variants:
                if compiled and not setup.compiled:
                    continue
                progress(f"{one.name}, {variant}, {frames} frames")
                row: dict[str, Any] = {"encoder": one.name, "variant": variant, "frames": frames}
                row |= _measure(model, video, truth, backend, compiled, setup)
                if "median_ms" in row:
                    row |= _rates(row["median_ms"], price, nbytes)
                    if one.name == TEACHER:
                        teacher[frames, compiled] = row["median_ms"]
                    if (frames, compiled) in teacher:
                        row["times_faster_than_teacher"] = teacher[frames, compiled] / row["median_ms"]
                yield row
            del model


def built_in(setup: Setup) -> list[Encoder]:
    """Teacher, student without compression, student; the teacher first, since the others are put in relation to it."""
    teacher_shape, arguments = INTERNVIT_300M, {}
    if setup.tiny:
        teacher_shape = dataclasses.replace(INTERNVIT_300M, dim=64, depth=2, mlp_dim=256)
        arguments = {"embed_dim": 64, "depth": 2, "num_heads": 2}
    student = setup.student_config
    plain = dataclasses.replace(student, downsample={}, temporal_mixer="none")
    return [
        Encoder(TEACHER, teacher_shape, lambda: _timm_teacher(arguments), PYTORCH),
        Encoder(PLAIN, plain, lambda: LiteFrameEncoder(plain), PYTORCH),
        Encoder(STUDENT, student, lambda: random_student(student), (*PYTORCH, *KERNELS)),
        Encoder(
            FORM,
            student,
            lambda: random_student(student),
            (*PYTORCH, *KERNELS),
            form=lambda encoder: encoder.for_inference(),
            of_bytes=True,
        ),
    ]


def random_student(config: LiteFrameConfig) -> LiteFrameEncoder:
    """Random weights of which every part counts: temporal convs start at zero, where a wrong kernel would go unseen."""
    encoder = LiteFrameEncoder(config)
    for name, parameter in encoder.named_parameters():
        if "temporal" in name or "downsample" in name:
            nn.init.normal_(parameter, std=0.2)
    return encoder.eval()


def _timm_teacher(arguments: dict[str, Any]) -> Teacher:
    return load_teacher("timm/vit_intern300m_patch14_448", pretrained=False, **arguments)


def _video(one: Encoder, frames: int, setup: Setup, device: torch.device) -> Tensor:
    """`[clips,frames of a clip,3,size,size]`, normalized or bytes."""
    shape = one.shape
    clip = min(frames, shape.clip_frames) if isinstance(shape, LiteFrameConfig) else frames
    if frames % clip:
        raise ValueError(f"--frames {frames} is not a multiple of the student's clip of {clip} frames")
    sizes = (frames // clip, clip, 3, setup.size, setup.size)
    if one.of_bytes:
        return torch.randint(0, 256, sizes, device=device, dtype=torch.uint8)
    return torch.randn(sizes, device=device, dtype=setup.dtype)


def normalized_video(video: Tensor, shape: Any) -> Tensor:
    """What the encoder's own form takes of a video, float32."""
    return normalized(video, shape, torch.float32) if video.dtype == torch.uint8 else video.float()


def features(output: Any) -> Tensor:
    """[B,T',h,w,C] of a student, a teacher or an exported model."""
    if isinstance(output, BaseModelOutput):
        return output.last_hidden_state
    return output.patches if isinstance(output, TeacherFeatures) else output


@torch.inference_mode()
def _measure(
    model: nn.Module, video: Tensor, truth: Tensor, backend: str | None, compiled: bool, setup: Setup
) -> dict[str, Any]:
    """Status and error of one variant against features of its first frames, and its time where it is right."""
    device = video.device
    if backend == "triton" and (device.type != "cuda" or triton is None):
        return {"status": NO_GPU}
    if compiled:
        torch.compiler.reset()  # else the limit of recompilations makes the last sizes run eager
        model = copy.deepcopy(model)
        compile_blocks(model)
    contender = {"": Contender(lambda run: video, model)}
    try:
        with force_backend(backend):
            first = features(model(video))[:1, : truth.shape[1]]
            checked = verdict(relative_error(first, truth), NETWORK_TOLERANCE[setup.dtype])
            if checked["status"] == "wrong":
                return checked
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            timing = time_side_by_side(contender, device, warmup=setup.warmup, runs=setup.runs)[""]
    except RuntimeError as error:  # no memory for it, or a compiler that is not there
        return failure(error)
    return {
        **checked,
        **as_milliseconds(timing),
        "ms_per_frame": timing.median_ms / (video.shape[0] * video.shape[1]),
        "peak_mib": torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None,
    }


def add_matmul_share(row: dict[str, Any], peak: float) -> None:
    """Put the rate of a row that was timed in relation to the matmul rate.

    Raises:
        ValueError: it is higher.
    """
    if "flop_per_s" not in row:
        return
    share = row["matmul_share"] = row["flop_per_s"] / peak
    if share > 1:
        raise ValueError(
            f"{row['encoder']}, {row['variant']}, {row['frames']} frames: {row['flop_per_s'] / 1e12:.3f} TFLOP/s is "
            f"{share:.0%} of the matmul rate measured in this run ({peak / 1e12:.3f} TFLOP/s), which cannot be; "
            "nothing is written. Something else used the machine: measure again when it is idle, with more --runs"
        )


def _rates(milliseconds: float, price: Cost, nbytes: int) -> dict[str, float]:
    """FLOP rates, with the attention products and, as the paper counts, without."""
    flops, seconds = price.flops + price.attention_flops, milliseconds / 1000
    return {
        "flop_per_s": flops / seconds,
        "flop_per_s_paper": price.flops / seconds,
        "intensity": flops / nbytes,
    }


def fused_bytes(shape: LiteFrameConfig | VitShape, frames: int, setup: Setup) -> int:
    """Bytes that all blocks together move at least: FUSED_PASSES over the tokens of each block."""
    return FUSED_PASSES * pass_bytes(shape, frames, setup.size, setup.dtype.itemsize)


def pass_bytes(shape: LiteFrameConfig | VitShape, frames: int, size: int, itemsize: int) -> int:
    """Bytes of the tokens of all blocks, once each."""
    rows = columns = size // shape.patch_size
    tokens, left = 0, frames
    for block in range(1, shape.depth + 1):
        tokens += left * (rows * columns + 1)
        if isinstance(shape, LiteFrameConfig) and block in shape.downsample:
            t, h, w = shape.downsample[block]
            left, rows, columns = left // t, rows // h, columns // w
    return tokens * shape.dim * itemsize


def _part(name: str) -> str | None:
    """The part of the student that a module of this name is counted to."""
    last = name.rsplit(".", 1)[-1]
    if last in ("patch_embed", "attn", "mlp", "head"):
        return last
    return "downsample" if name.startswith("downsample.") else None


def _given(calls: list[tuple[Callable, tuple]], run: int) -> list[tuple[Callable, tuple]]:
    return calls


def _remember(calls: list[tuple[Callable, tuple]], module: nn.Module, args: tuple) -> None:
    calls.append((module, args))


def _called(calls: list[tuple[Callable, tuple]], function: Callable, *args: Any) -> Any:
    calls.append((function, args))
    return function(*args)


def student_parts(setup: Setup, device: torch.device, progress: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """The time of the eager student by part, for each number of frames."""
    student = next(one for one in built_in(setup) if one.name == STUDENT)
    model = student.build().requires_grad_(False).to(device, setup.dtype)
    for frames in setup.frames:
        progress(f"student by part, {frames} frames")
        for part in _time_by_part(model, _video(student, frames, setup, device), setup):
            yield {"frames": frames, **part}


@torch.inference_mode()
def _time_by_part(model: nn.Module, video: Tensor, setup: Setup) -> list[dict[str, Any]]:
    """Time of the eager student by part, by running each part again on the input that it gets.

    "temporal" is the mixer with what is joined to it: LayerScale, residual and the norm behind it. "other" is what the
    whole takes beyond its parts: other residuals and norms, copies. On a GPU parts and whole are timed apart, so launch
    gaps that overlap in the whole can make it small.
    """
    inputs: dict[str, list[tuple[Callable, tuple]]] = {}
    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, Mixer):
                spied = partial(_called, inputs.setdefault("temporal", []), module.join)
                hooks.enter_context(mock.patch.object(module, "join", spied))
            elif part := _part(name):
                calls = inputs.setdefault(part, [])
                hook = module.register_forward_pre_hook(partial(_remember, calls))
                hooks.callback(hook.remove)
        model(video)

    def run_part(calls: list[tuple[Callable, tuple]]) -> None:
        for call, args in calls:
            call(*args)

    contenders = {part: Contender(partial(_given, calls), run_part) for part, calls in inputs.items()}
    contenders["whole"] = Contender(lambda run: video, model)
    timings = time_side_by_side(contenders, video.device, warmup=3, runs=min(20, setup.runs))
    whole = timings.pop("whole").median_ms
    parts = {part: timing.median_ms for part, timing in timings.items()}
    parts["other"] = max(0.0, whole - sum(parts.values()))
    return [{"part": part, "median_ms": ms, "share": ms / whole} for part, ms in parts.items()]


def _described(setup: Setup) -> dict[str, Any]:
    return {**dataclasses.asdict(setup), "frames": list(setup.frames), "dtype": str(setup.dtype).removeprefix("torch.")}
