"""All that a GPU has to tell, in the minutes for which one was borrowed: results first, then speed.

python benchmarks/gpu.py --minutes 8 --out FOLDER    # on the GPU
python benchmarks/gpu.py --small --out FOLDER        # a rehearsal at small sizes, anywhere

Needs torch, triton, transformers, timm, safetensors and this checkout, no more: with kernels/ and export/ on PYTHONPATH
beside the checkout itself, nothing has to be installed. FOLDER/gpu.json is complete after each row; the same command
goes on where it was stopped, or on another day. A part that fails is recorded with its error, and the others go on.
Kernels, student and training steps are compared with float64, or with float32 on the CPU, and a speed is measured only
of what is right. Ends with 0 where every part is ok.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from liteframe_export.hf_encoder import exported_encoder
from liteframe_kernels import force_backend

from liteframe.bench.comparison import NETWORK_TOLERANCE, check, compare, relative_error, verdict
from liteframe.bench.encoder import (
    Encoder,
    Setup,
    add_matmul_share,
    built_in,
    encoder_rows,
    features,
    random_student,
    student_parts,
)
from liteframe.bench.kernels import comparisons
from liteframe.bench.latency import add_ratios, measure_latencies
from liteframe.bench.parts import Measurement, Part, Row
from liteframe.bench.report import heading, markdown
from liteframe.bench.steps import CtdStep, LmaStep, check_step, time_ctd
from liteframe.bench.systems import build_systems, random_internvl3_8b
from liteframe.bench.timing import copy_bandwidth, machine, matmul_rate
from liteframe.files import check_output, write_atomically
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.inference import normalized
from liteframe.models.vlm.load import find_device, load_video_llm

MATMUL = "bfloat16 matmul, FLOP/s"
MARGIN_S = 20  # of the minutes: starting Python, and ending
TOY = {
    "dim": 64, "depth": 4, "heads": 2, "patch_size": 8, "image_size": 64, "teacher_dim": 128, "clip_frames": 8,
    "downsample": {1: (2, 2, 2), 2: (2, 1, 1)}, "image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5),
}  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """Sizes: those of the paper, or small ones for a rehearsal.

    Attributes:
        tiny: few channels and layers.
        size: pixels of a frame's side where speed is measured.
        check_size, check_frames: of the training steps that the CPU repeats.
        checked: frames, side and channels of tensors on which kernels are checked, beside the one they are timed on.
        kernels: frames, side, channels of student and teacher of the tensors on which they are timed.
        encoders: numbers of frames, and whether compiled encoders are measured at these, in the order of their value.
        clips: of 16 frames in a step of CTD that is timed.
        latency: numbers of frames of whole Video LLMs.
        warmup, runs: calls that are not counted, and that are.
        seconds: after which encoders, CTD and latency are ended while other parts wait.
    """

    tiny: bool
    size: int
    check_size: int
    check_frames: int
    checked: tuple[tuple[int, int, int], ...]
    kernels: tuple[int, int, int, int]
    encoders: tuple[tuple[tuple[int, ...], bool], ...]
    clips: int
    latency: tuple[int, ...]
    warmup: int
    runs: int
    seconds: float


FULL = Scale(
    tiny=False, size=448, check_size=224, check_frames=8, checked=((12, 10, 200), (4, 2, 72), (8, 32, 768)),
    kernels=(256, 32, 768, 1024), encoders=(((128, 256), True), ((8, 32, 64), False), ((8, 32, 64), True)),
    clips=8, latency=(32, 256), warmup=10, runs=30, seconds=120,
)  # fmt: skip
SMALL = Scale(
    tiny=True, size=56, check_size=56, check_frames=8, checked=((4, 2, 24),), kernels=(8, 4, 64, 64),
    encoders=(((16,), False),), clips=1, latency=(32,), warmup=0, runs=2, seconds=60,
)  # fmt: skip


class Measured:
    """What the parts measure, and what they hand on to each other.

    Args:
        scale: sizes.
        device: where.
        measurement: the record, and where progress is said.
    """

    def __init__(self, scale: Scale, device: torch.device, measurement: Measurement):
        self.scale, self.device, self.dtype, self.measurement = scale, device, torch.bfloat16, measurement
        self.protocol = {"warmup": scale.warmup, "runs": scale.runs}

    def parts(self) -> list[Part]:
        """The most valuable first."""
        seconds = self.scale.seconds
        return [
            Part("kernels are right", self.kernels_right),
            Part("student is right", self.student_right),
            Part("CTD step is right", self.ctd_right),
            Part("LMA step is right", self.lma_right),
            Part("rates", self.rates),
            Part("kernels", self.kernels, after=("kernels are right",), seconds=seconds),
            Part("encoders", self.encoders, after=("student is right",), seconds=seconds),
            Part("CTD step", self.ctd, after=("CTD step is right",), seconds=seconds),
            Part("latency", self.latency, after=("student is right",), seconds=seconds),
            Part("student by part", self.by_part, after=("student is right",)),
        ]

    def kernels_right(self) -> Iterator[Row]:
        """Each Triton kernel against float64, forward and all gradients, at odd sizes and in both dtypes."""
        for frames, side, channels in self.scale.checked:
            for dtype in (torch.float32, torch.bfloat16):
                sizes = {"frames": frames, "side": side, "channels": channels, "teacher_channels": channels}
                for one in comparisons(self.device, dtype, compiled=False, **sizes):
                    yield from check(one, self.device, "triton")

    def student_right(self) -> Iterator[Row]:
        """A clip's features in each form against float32 on the CPU."""
        torch.manual_seed(0)
        student = random_student(self._setup((8,), False).student_config)
        sizes = (1, student.config.clip_frames, 3, self.scale.size, self.scale.size)
        frames = torch.randint(0, 256, sizes, dtype=torch.uint8)
        pixels = normalized(frames, student.config, torch.float32)
        forms: dict[str, tuple[str | None, Callable[[Any], torch.nn.Module], torch.Tensor]] = {
            "eager": ("reference", lambda encoder: encoder, pixels),
            "kernels": (None, lambda encoder: encoder, pixels),
            "inference form": (None, lambda encoder: encoder.for_inference(), frames),
            "exported": (None, lambda encoder: encoder, pixels),
        }
        with torch.inference_mode():
            exact = student(pixels)
        for name, (backend, form, given) in forms.items():
            built = exported_encoder(copy.deepcopy(student)) if name == "exported" else student
            for dtype in (torch.float32, torch.bfloat16):
                with torch.inference_mode(), force_backend(backend):
                    there = form(copy.deepcopy(built).to(self.device, dtype))
                    shown = given.to(self.device, dtype if given.is_floating_point() else None)
                    error = relative_error(features(there(shown)), exact)
                yield {"variant": name, "dtype": str(dtype)[6:], **verdict(error, NETWORK_TOLERANCE[dtype])}

    def _ctd(self, clips: int, frames: int, size: int) -> tuple[CtdStep, torch.Tensor]:
        torch.manual_seed(0)
        teacher, _, student = (one.build() for one in built_in(self._setup((8,), False))[:3])
        video = torch.randn(clips, frames, 3, size, size)
        return CtdStep(teacher, student, video), video

    def ctd_right(self) -> Iterator[Row]:
        """Loss and all gradients of a step of CTD."""
        step, video = self._ctd(1, self.scale.check_frames, self.scale.check_size)
        yield from check_step(step, self.device, video)

    def lma_right(self) -> Iterator[Row]:
        """Loss and all gradients of a step of LMA on toyworld's InternVL."""
        torch.manual_seed(0)
        vlm, _ = load_video_llm("toyworld", dtype=torch.float32)
        step = LmaStep(vlm, random_student(LiteFrameConfig(**TOY)), frames=16)
        trained = "LoRA, projector, encoder" if step.with_lora else "projector, encoder: peft is not installed"
        for row in check_step(step, self.device):
            yield {"trained": trained, **row}

    def rates(self) -> Iterator[Row]:
        """Copy bandwidth and matmul rate."""
        nbytes = 2**31 if self.device.type == "cuda" else 2**22
        yield {"rate": "copy, B/s read and written", "value": copy_bandwidth(self.device, nbytes, **self.protocol)}
        yield {"rate": MATMUL, "value": matmul_rate(self.device, self.dtype, **self.protocol)}

    def kernels(self) -> Iterator[Row]:
        """Each kernel against cuDNN, eager and compiled PyTorch at the student's largest tensors."""
        frames, side, channels, teacher_channels = self.scale.kernels
        copied = frames * (1 + side * side) * channels * self.dtype.itemsize
        bandwidth = copy_bandwidth(self.device, copied, **self.protocol)
        sizes = {"frames": frames, "side": side, "channels": channels, "teacher_channels": teacher_channels}
        for one in comparisons(self.device, self.dtype, compiled=not self.scale.tiny, **sizes):
            self.measurement.say(f"{one.kernel}, {one.label}")
            for row in compare(one, self.device, copy_bytes_per_s=bandwidth, **self.protocol):
                # What of others is wrong or fails is not timed, and no fault of this part.
                yield row if row["implementation"] == "triton" else {**row, "status": f"theirs: {row['status']}"}

    def encoders(self) -> Iterator[Row]:
        """Teacher and students in all their forms."""
        peak = next((row["value"] for row in self.measurement.rows("rates") if row["rate"] == MATMUL), None)
        for frames, compiled in self.scale.encoders:
            setup = self._setup(frames, compiled)
            encoders = [*built_in(setup), *more_encoders(setup.student_config)]
            for row in encoder_rows(setup, self.device, self.measurement.say, encoders):
                if peak is not None:
                    add_matmul_share(row, peak)
                yield row

    def ctd(self) -> Iterator[Row]:
        """A step of CTD, live and from a cache."""
        step, video = self._ctd(self.scale.clips, 16, self.scale.size)
        step, video = step.to_precision("bf16-mixed", self.device), video.to(self.device)
        for compiled in (False,) if self.scale.tiny else (False, True):
            yield from time_ctd(step, video, compiled=compiled, progress=self.measurement.say, **self.protocol)

    def latency(self) -> Iterator[Row]:
        """Vision, projector and prefill of InternVL3-8B's shapes, random weights; toyworld's in a rehearsal."""
        if self.scale.tiny:
            vlm, _ = load_video_llm("toyworld", dtype=self.dtype)
            pair = vlm.to(self.device), random_student(LiteFrameConfig(**TOY))
        else:
            pair = random_internvl3_8b(self.device, self.dtype)
        found: list[Row] = []
        told = {"progress": self.measurement.say, **self.protocol}
        for rows in measure_latencies(build_systems(*pair), self.scale.latency, [1], **told):
            found += rows
            add_ratios(found)
            yield from rows

    def by_part(self) -> Iterator[Row]:
        """The eager student's time by part."""
        frames = self.scale.encoders[0][0][:1]
        yield from student_parts(self._setup(frames, False), self.device, self.measurement.say)

    def _setup(self, frames: tuple[int, ...], compiled: bool) -> Setup:
        scale = self.scale
        return Setup(frames, scale.size, self.dtype, scale.warmup, scale.runs, compiled, scale.tiny)


def more_encoders(config: LiteFrameConfig) -> list[Encoder]:
    """The student as an export, with the kernels that travel with it."""
    as_it_is = (("as it is", None, False),)
    return [Encoder("student, exported", config, lambda: exported_encoder(random_student(config)), as_it_is)]


# Of a table, those that a part's rows have.
COLUMNS = (
    "encoder", "system", "kernel", "label", "direction", "implementation", "variant", "targets", "dtype", "precision",
    "trained", "frames", "clips", "part", "rate", "value", "error", "worst", "median_ms", "copy_share", "matmul_share",
    "times_faster_than_teacher", "vision_ms", "prefill_ms", "total_ms", "of_teacher_32", "frames_per_s", "peak_mib",
    "share", "status",
)  # fmt: skip


def as_markdown(record: dict[str, Any]) -> str:
    """A table a part."""
    parts = record["parts"]
    text = heading(record, "One borrowed GPU" if record["machine"]["measured_on_gpu"] else "Rehearsal without a GPU")
    text += markdown(("part", "status", "s"), [[n, p["status"], f"{p['seconds']:.0f}"] for n, p in parts.items()])
    for name, part in parts.items():
        columns = tuple(column for column in COLUMNS if any(column in row for row in part["rows"]))
        rows = [[shown(row.get(column)) for column in columns] for row in part["rows"]]
        text += f"\n## {name[0].upper()}{name[1:]}\n\n{markdown(columns, rows)}" if rows else ""
    return text


def shown(value: Any) -> str:
    """A cell of a table."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write; the status of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="for which there is a GPU (default: 8)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for gpu.json and gpu.md")
    parser.add_argument("--device", help="cuda, cuda:1, ...; default: the first GPU; with --small: cpu")
    parser.add_argument("--small", action="store_true", help="small models and tensors, for a rehearsal")
    args = parser.parse_args(argv)
    device = find_device(args.device or ("cpu" if args.small else None))
    if device.type != "cuda" and not args.small:
        parser.error("there is no GPU; --small rehearses on a CPU")
    check_output(args.out, folder=True)
    torch.backends.cudnn.allow_tf32 = False  # float32 is compared with float32
    scale = SMALL if args.small else FULL
    where = machine(device)
    fixed = {
        "scale": "small" if args.small else "full",
        **{name: where[name] for name in ("device", "torch", "python", "cuda")},
        "transformers": transformers.__version__,
        "timm": timm.__version__,
    }
    facts = {"machine": where, "minutes": args.minutes, "sizes": vars(scale)}
    measurement = Measurement(
        args.out / "gpu.json",
        fixed,
        facts,
        minutes=args.minutes - MARGIN_S / 60,
        save=partial(write_markdown, args.out / "gpu.md"),
    )
    return measurement.run(Measured(scale, device, measurement).parts())


def write_markdown(path: Path, record: dict[str, Any]) -> None:
    """Write the tables of a record."""
    write_atomically(path, as_markdown(record).encode())


if __name__ == "__main__":
    sys.exit(main())
