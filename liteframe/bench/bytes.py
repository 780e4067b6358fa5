"""Bytes that teacher, student and a training step move, in every form in which they run: a table without a GPU."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from liteframe_kernels import force_backend
from torch import Tensor, nn

from liteframe.bench.byte_count import backward, count, fake_gpu, on_fake_gpu
from liteframe.bench.encoder import pass_bytes
from liteframe.bench.inductor_count import compiled_kinds
from liteframe.bench.report import markdown
from liteframe.distill.losses import batch_loss
from liteframe.distill.objectives import objectives
from liteframe.distill.targets import TargetSettings
from liteframe.files import write_atomically, write_json
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.cost import INTERNVIT_300M
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.teacher.base import Teacher
from liteframe.models.teacher.load import load_teacher
from liteframe.reduce.pooled_teacher import PooledTeacher

FRAMES, SIZE, DTYPE = 128, 448, torch.bfloat16
BANDWIDTHS = {"3.0": 3.0e12, "1.6": 1.6e12}  # TB/s that elementwise kernels reach: H100 and H200, A100
SHOWN_KINDS = 6
Exported = Callable[[LiteFrameConfig, bool], nn.Module]


@dataclass(frozen=True)
class Form:
    """One way to run something.

    Attributes:
        what: whose bytes.
        form: how it runs.
        kinds: counts them, by kind of operation.
    """

    what: str
    form: str
    kinds: Callable[[], dict[str, int]]


def measure_bytes(progress: Callable[[str], None], exported: Exported | None = None) -> dict[str, Any]:
    """A record with a row for each form.

    Args:
        progress: told what is counted.
        exported: makes the encoder of a config as an export's own code has it, on "meta", for a machine with Triton or
            without; None leaves exports out.
    """
    rows = []
    for form in forms(exported):
        progress(f"{form.what}, {form.form}")
        kinds = form.kinds()
        total = sum(kinds.values())
        shape = INTERNVIT_300M if form.what == "teacher" else LiteFrameConfig()
        rows.append(
            {
                "what": form.what,
                "form": form.form,
                "bytes": total,
                "passes": total / pass_bytes(shape, FRAMES, SIZE, DTYPE.itemsize),
                **{f"ms_at_{name}_TB_s": 1000 * total / rate for name, rate in BANDWIDTHS.items()},
                "by_kind": kinds,
            }
        )
    return {
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "frames": FRAMES,
        "size": SIZE,
        "dtype": str(DTYPE).removeprefix("torch."),
        "rows": rows,
    }


def forms(exported: Exported | None) -> Iterator[Form]:
    """What the table holds, in its order."""
    config = LiteFrameConfig()
    yield Form("teacher", "eager", lambda: forward_kinds(_teacher(), _pixels(1)))
    yield Form("student", "eager, without kernels", lambda: forward_kinds(student(config), _pixels(), "reference"))
    yield Form("student", "eager, kernels", lambda: forward_kinds(student(config), _pixels()))
    yield Form("student", "inference form, kernels", lambda: forward_kinds(inference_form(config), _bytes()))
    yield Form("student", "compiled, kernels", lambda: compiled_kinds(student(config), _pixels))
    yield Form("student", "compiled, without kernels", lambda: compiled_kinds(student(config), _pixels, "reference"))
    form = functools.partial(inference_form, config)
    yield Form("student", "inference form, compiled, kernels", lambda: compiled_kinds(form(), _bytes))
    yield Form(
        "student", "inference form, compiled, without kernels", lambda: compiled_kinds(form(), _bytes, "reference")
    )
    if exported is not None:
        yield Form("export", "kernels", lambda: forward_kinds(on_gpu(exported(config, True)), _pixels()))
        yield Form("export", "without Triton", lambda: forward_kinds(on_gpu(exported(config, False)), _pixels()))
    yield Form("CTD step, live", "eager, kernels", lambda: step_kinds(config, live=True))
    yield Form("CTD step, cached", "eager, kernels", lambda: step_kinds(config, live=False))


def forward_kinds(model: Callable[[Tensor], Any], video: Tensor, backend: str | None = None) -> dict[str, int]:
    """Bytes by kind of a forward pass, without gradients."""
    with fake_gpu(), torch.no_grad(), force_backend(backend):
        return count(lambda: model(video)).by_kind()


def step_kinds(config: LiteFrameConfig, *, live: bool) -> dict[str, int]:
    """Bytes by kind of one micro-batch of CTD, as `bf16-mixed` trains on a GPU: float32 weights, autocast, backward.

    The optimizer's step is left out: it moves weights alone, once for several micro-batches.
    """
    teacher = PooledTeacher(_teacher(), config.compression) if live else None
    with fake_gpu():
        model = on_gpu(_on_meta(lambda: LiteFrameEncoder(config)), torch.float32).train()
        objective = objectives["ctd"](config.teacher_dim, TargetSettings(), "mse")
        on_gpu(objective.normalizer, torch.float32)
        video = _pixels(FRAMES // config.clip_frames, dtype=torch.float32)
        stored = torch.empty(
            len(video), config.clip_frames // 4, 16, 16, config.teacher_dim, dtype=DTYPE, device="cuda"
        )
        mask = torch.ones(video.shape[:2], dtype=torch.bool, device="cuda")

        def step() -> None:
            with torch.autocast("cuda", DTYPE):
                with torch.no_grad():
                    pooled = stored.float() if teacher is None else teacher(video, mask).tokens
                    target = objective.targets(pooled, torch.ones(pooled.shape[:2], dtype=torch.bool, device="cuda"))
                losses = objective.loss(model(video), target)
                loss = batch_loss(losses.per_clip, len(video))
            backward(loss)

        return count(step).by_kind()


def student(config: LiteFrameConfig) -> LiteFrameEncoder:
    """The training form with weights in 16 bits on a fake GPU."""
    return on_gpu(_on_meta(lambda: LiteFrameEncoder(config)))


def inference_form(config: LiteFrameConfig) -> nn.Module:
    """What `encoder.for_inference()` is there."""
    encoder = student(config)
    with fake_gpu():
        return encoder.for_inference()


def on_gpu(model: Any, dtype: torch.dtype = DTYPE) -> Any:
    """A model made on "meta", in eval mode on a fake GPU."""
    with fake_gpu():
        return on_fake_gpu(model.eval(), dtype)


def _on_meta(make: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        return make()


@functools.cache
def _teacher() -> Teacher:
    teacher = load_teacher("timm/vit_intern300m_patch14_448", pretrained=False, dtype=DTYPE)
    for part in teacher.parts:
        on_gpu(part)
    return teacher


def _pixels(clips: int = 8, dtype: torch.dtype = DTYPE) -> Tensor:
    """FRAMES normalized frames in so many clips, on a fake GPU."""
    with fake_gpu():
        return torch.empty(clips, FRAMES // clips, 3, SIZE, SIZE, dtype=dtype, device="cuda")


def _bytes() -> Tensor:
    return _pixels(dtype=torch.uint8)


def write_bytes(record: dict[str, Any], folder: Path) -> list[Path]:
    """Write the record as bytes.json, and its table as bytes.md."""
    paths = [folder / "bytes.json", folder / "bytes.md"]
    write_json(paths[0], record)
    write_atomically(paths[1], bytes_table(record).encode())
    return paths


def bytes_table(record: dict[str, Any]) -> str:
    """Markdown of a record."""
    columns = ("what", "form", "GB", "passes", *(f"ms at {name} TB/s" for name in BANDWIDTHS), "largest parts, GB")
    rows = []
    for row in record["rows"]:
        parts = ", ".join(f"{kind} {size / 1e9:.1f}" for kind, size in list(row["by_kind"].items())[:SHOWN_KINDS])
        times = [f"{row[f'ms_at_{name}_TB_s']:.1f}" for name in BANDWIDTHS]
        rows.append([row["what"], row["form"], f"{row['bytes'] / 1e9:.1f}", f"{row['passes']:.1f}", *times, parts])
    head = (
        f"# Bytes\n\n{record['frames']} frames of {record['size']} pixels, {record['dtype']}, torch {record['torch']}, "
        f"{record['date']}; counted on tensors without memory by `liteframe bench bytes`, measured on no GPU.\n\n"
    )
    notes = """
Every operation reads its inputs and writes its outputs once, whatever a library does within one call; a pass is one
reading or writing of the tokens of all blocks. Rows of the compiled forms are what Inductor says of the kernels that it
would make for an H100. A CTD step is one micro-batch, forward and backward, without the optimizer.
"""
    return head + markdown(columns, rows) + notes
