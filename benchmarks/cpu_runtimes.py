"""What to encode with on a CPU, and where the time of `liteframe ask` goes there.

python benchmarks/cpu_runtimes.py [--threads N] [-o benchmarks]    # a quarter of an hour on two idle cores

The 87M student and the 304M teacher at 448 pixels in torch (eager, and compiled block by block), onnxruntime and
OpenVINO (an extra: pip install openvino), in float32, and in bfloat16 and 8 bits where a runtime has them. All runtimes
of a model take turns. Each is first compared with torch in float32, and one that is wrong is not timed. 8 bits are
onnxruntime's dynamic quantization of the linear layers, and the same graph in OpenVINO; weights are random, so that its
error is no measure of accuracy. The teacher sees each frame by itself and is timed with few: compare times a frame.

Then `ask` about a 720p H.264 file with the student before a language model of the shape of Qwen2.5-0.5B (that of
InternVL3-1B), random weights: waiting for frames, resizing, encoding, prefill.

Writes cpu_runtimes.{json,md}, complete after each part; the same command goes on where it was stopped. Tables at full
size also go between the markers of docs/cpu.md.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from liteframe_export.graph import traceable
from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration

from liteframe.answer import ask as ask_module
from liteframe.answer.frame_encoder import ClipEncoder
from liteframe.bench.comparison import failure, relative_error, verdict
from liteframe.bench.encoder import Setup, built_in
from liteframe.bench.first_token import write_sample
from liteframe.bench.parts import Measurement, Part, Row
from liteframe.bench.report import heading, markdown
from liteframe.bench.systems import internvl3_1b_config
from liteframe.bench.timing import Contender, as_milliseconds, machine, time_side_by_side
from liteframe.data.video.process import DecodeProcess
from liteframe.distill.speed import compile_blocks
from liteframe.files import check_output, write_atomically
from liteframe.machine import processor_name
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.vlm.attach import attach_encoder, processor_for
from liteframe.toyworld.model import build_processor, build_tokenizer

CPU = torch.device("cpu")
DOCS = Path(__file__).resolve().parents[1] / "docs" / "cpu.md"
MARKERS = ("<!-- measured -->\n", "<!-- /measured -->")
# Largest error against torch in float32, root mean square, relative.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "int8": 0.2}
BASE = ("torch eager", "float32")
STEPS = ("decode", "resize", "encode", "prefill", "rest", "total")
Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Scale:
    """Sizes: the true ones, or small ones for a test.

    Attributes:
        size: pixels of a frame's side.
        frames: of a clip of the student.
        teacher_frames: of the teacher.
        compiled: whether torch.compile is tried.
        runs: passes that are counted, after one that is not.
        asked: frames that `ask` looks at.
        seconds: of the file that it is asked about.
        picture: height and width of that file.
    """

    size: int
    frames: int
    teacher_frames: int
    compiled: bool
    runs: int
    asked: int
    seconds: int
    picture: tuple[int, int]


FULL = Scale(448, 16, 2, compiled=True, runs=3, asked=32, seconds=30, picture=(720, 1280))
SMALL = Scale(56, 16, 2, compiled=False, runs=1, asked=8, seconds=1, picture=(90, 160))


class Patches(nn.Module):
    """A teacher's patch features alone: [B,T,3,H,W] -> [B,T,h,w,C]."""

    def __init__(self, tower: nn.Module):
        super().__init__()
        self.tower = tower

    def forward(self, video: Tensor) -> Tensor:
        """See the class."""
        return self.tower(video).patches


def measure(name: str, scale: Scale, folder: Path, say: Callable[[str], None]) -> Iterator[Row]:
    """Rows of one model, "student" or "teacher": right, and then timed in turns; or why not."""
    torch.manual_seed(0)
    frames = scale.frames if name == "student" else scale.teacher_frames
    teacher, _, student = built_in(Setup((frames,), scale.size, torch.float32, 1, 1, False, tiny=scale == SMALL))[:3]
    model = student.build().eval() if name == "student" else Patches(teacher.build().tower).eval()
    video = torch.randn(1, frames, 3, scale.size, scale.size)
    exact = in_torch(model, video, torch.float32, False)()
    rows: dict[tuple[str, str], Row] = {}
    calls: dict[str, Contender] = {}
    for runtime, precision, build in candidates(model, video, folder, scale.compiled):
        say(f"{name}, {runtime}, {precision}: being built")
        row = rows[runtime, precision] = {"encoder": name, "runtime": runtime, "precision": precision, "frames": frames}
        began = time.perf_counter()
        try:
            call = build()
            row |= verdict(relative_error(call(), exact), TOLERANCE[precision])
        except ModuleNotFoundError as error:
            row["status"] = f"skipped: {error.name} is not installed"
        except Exception as error:  # whatever a runtime raises: the others go on
            row |= {**failure(error), "status": f"not here: {failure(error)['status']}"}
        row["build_s"] = time.perf_counter() - began
        if row["status"] == "ok":
            calls[f"{runtime}|{precision}"] = Contender(lambda run: None, lambda _, call=call: call())
    say(f"{name}: {len(calls)} in turns")
    timings = time_side_by_side(calls, CPU, warmup=1, runs=scale.runs)
    base = timings["|".join(BASE)].median_ms
    for (runtime, precision), row in rows.items():
        if timing := timings.get(f"{runtime}|{precision}"):
            row |= {**as_milliseconds(timing), "ms_per_frame": timing.median_ms / frames}
            row["times_torch_eager"] = base / timing.median_ms
        yield row


def candidates(
    model: nn.Module, video: Tensor, folder: Path, compiled: bool
) -> Iterator[tuple[str, str, Callable[[], Call]]]:
    """Runtime, precision, and what builds a call that encodes `video`."""
    forms = {"": model}
    if isinstance(model, LiteFrameEncoder):
        forms[", inference form"] = model.for_inference()
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        for name, form in forms.items():
            yield f"torch eager{name}", precision, partial(in_torch, form, video, dtype, False)
            if compiled:
                yield f"torch compiled{name}", precision, partial(in_torch, form, video, dtype, True)
    yield "onnxruntime", "float32", partial(in_onnxruntime, model, video, folder, False)
    yield "onnxruntime", "int8", partial(in_onnxruntime, model, video, folder, True)
    for precision in ("float32", "bfloat16", "int8"):
        yield "OpenVINO", precision, partial(in_openvino, model, video, folder, precision)


def in_torch(model: nn.Module, video: Tensor, dtype: torch.dtype, compiled: bool) -> Call:
    """PyTorch itself."""
    copied, given = copy.deepcopy(model).to(dtype), video.to(dtype)
    if compiled:
        compile_blocks(copied)
    return torch.inference_mode()(lambda: copied(given))


def onnx_graph(model: nn.Module, video: Tensor, folder: Path, quantized: bool) -> Path:
    """The model as a graph for this video's sizes, written once; quantized: linear layers in 8 bits."""
    plain, small = folder / "model.onnx", folder / "model_int8.onnx"
    if not plain.is_file():
        import onnxscript  # noqa: F401 - what torch.onnx translates with

        # As `liteframe export onnx` writes it, but for the one size.
        traced = traceable(model) if isinstance(model, LiteFrameEncoder) else model
        program = torch.onnx.export(traced, (video,), dynamo=True, opset_version=20, verbose=False)
        assert program is not None
        program.save(plain)
    if quantized and not small.is_file():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(plain, small, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
    return small if quantized else plain


def in_onnxruntime(model: nn.Module, video: Tensor, folder: Path, quantized: bool) -> Call:
    """Onnxruntime with as many threads as torch has, which do not spin while others have their turn."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    graph = onnx_graph(model, video, folder, quantized)
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: video.numpy()}
    return lambda: torch.from_numpy(session.run(None, given)[0])


def in_openvino(model: nn.Module, video: Tensor, folder: Path, precision: str) -> Call:
    """OpenVINO, from onnxruntime's graph."""
    import openvino

    graph = openvino.Core().read_model(onnx_graph(model, video, folder, precision == "int8"))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
    }
    compiled = openvino.Core().compile_model(graph, "CPU", settings)
    given = video.numpy()
    return lambda: torch.from_numpy(compiled(given)[0])


def ask_by_step(scale: Scale, folder: Path, say: Callable[[str], None]) -> Iterator[Row]:
    """Seconds of each step of `ask` about a file, in float32 and in bfloat16; one of few frames goes before."""
    path = folder / "video.mp4"
    say("writing a video")
    write_sample(path, 25 * scale.seconds, scale.picture)
    model, processor = video_llm(scale)
    for dtype in (torch.float32, torch.bfloat16):
        model = model.to(dtype)
        for frames, counted in ((4, False), (scale.asked, True)):
            say(f"{frames} frames, {dtype}")
            with spans(model, processor) as seconds:
                began = time.perf_counter()
                list(ask_module.ask(model, processor, path, "What happens?", frames=frames, max_new_tokens=1))
                total = time.perf_counter() - began
            seconds |= {"rest": total - sum(seconds.values()), "total": total}
            if counted:
                where = {"frames": frames, "precision": str(dtype).removeprefix("torch.")}
                yield {**where, **{f"{step}_s": seconds[step] for step in STEPS}}


@contextmanager
def spans(model: Any, processor: Any) -> Iterator[dict[str, float]]:
    """Seconds spent in each step meanwhile; of decoding, those in which `ask` waits for it."""
    seconds = dict.fromkeys(STEPS[:4], 0.0)
    places = (
        ("decode", DecodeProcess, "probe"), ("decode", DecodeProcess, "read"), ("resize", ClipEncoder, "resized"),
        ("encode", ClipEncoder, "encode"), ("prefill", type(model.model.language_model), "forward"),
    )  # fmt: skip

    def timed(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[step] += time.perf_counter() - began

        return call

    before = [getattr(owner, name) for _, owner, name in places]
    for step, owner, name in places:
        setattr(owner, name, timed(step, getattr(owner, name)))
    try:
        yield seconds
    finally:
        for (_, owner, name), function in zip(places, before, strict=True):
            setattr(owner, name, function)


def video_llm(scale: Scale) -> tuple[Any, Any]:
    """The student before a language model of half a billion weights, all random, and a processor for the two."""
    torch.manual_seed(0)
    student = built_in(Setup((8,), scale.size, torch.float32, 1, 1, False, tiny=scale == SMALL))[2]
    encoder = student.build()
    processor = build_processor(build_tokenizer())
    config = internvl3_1b_config()
    config.image_token_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    config.vision_config.num_hidden_layers = 1  # gives way to the student
    config.vision_config.hidden_size = encoder.config.teacher_dim
    if scale == SMALL:
        config.text_config.num_hidden_layers, config.text_config.layer_types = 1, ["full_attention"]
        config.text_config.vocab_size = len(processor.tokenizer)
    for part in (processor.image_processor, processor.video_processor):
        part.size = {"height": encoder.config.image_size, "width": encoder.config.image_size}
    vlm = InternVLForConditionalGeneration._from_config(config, dtype=torch.float32).eval()
    model = attach_encoder(vlm, encoder).eval()
    return model, processor_for(processor, model.config)


def as_markdown(record: Row) -> str:
    """The record for people."""
    where, times_of_a_cpu = heading(record, "Encoders on a CPU").rsplit("\n\n", 2)[0], tables(record)
    return f"{where}\n\n{times_of_a_cpu}"


def tables(record: Row) -> str:
    """Encoders in their runtimes, the student beside the teacher, and the steps of `ask`."""
    parts = record["parts"]
    used = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    when = record["machine"]["date"]
    text = (
        f"{record['processor']}, {record['threads']} threads; {used}; {when}, `python benchmarks/cpu_runtimes.py`.\n\n"
    )
    rows = [row for name in ("student", "teacher") for row in parts.get(name, {}).get("rows", [])]
    if rows:
        columns = (
            "encoder",
            "runtime",
            "precision",
            "frames",
            "ms a frame",
            "times torch eager",
            "error",
            "built in s",
        )
        text += markdown(columns, [cells(row) for row in rows])
    speeds = {(row["encoder"], row["runtime"], row["precision"]): row.get("ms_per_frame") for row in rows}
    pairs = [(key[1:], ms, speeds.get(("teacher", *key[1:]))) for key, ms in speeds.items() if key[0] == "student"]
    ratios = [[*names, f"{theirs / ours:.2f}"] for names, ours, theirs in pairs if ours and theirs]
    if ratios:
        text += "\nA frame of the teacher takes so many times as long as one of the student:\n\n"
        text += markdown(("runtime", "precision", "times"), ratios)
    if asked := parts.get("ask", {}).get("rows"):
        text += f"\n`ask` about a file of {record['picture'][1]}x{record['picture'][0]} pixels, seconds:\n\n"
        steps = [[f"{row[f'{step}_s']:.2f}" for step in STEPS] for row in asked]
        heads = [[row["precision"], str(row["frames"])] for row in asked]
        columns = ("precision", "frames", *STEPS)
        text += markdown(columns, [head + step for head, step in zip(heads, steps, strict=True)])
    return text


def fill(path: Path, text: str) -> None:
    """Put the text between the markers of a file."""
    before, rest = path.read_text().split(MARKERS[0])
    _, after = rest.split(MARKERS[1])
    write_atomically(path, (before + MARKERS[0] + text + MARKERS[1] + after).encode())


def cells(row: Row) -> list[str]:
    """A runtime's row of the table."""
    timed = "median_ms" in row
    return [
        row["encoder"],
        row["runtime"],
        row["precision"],
        str(row["frames"]),
        f"{row['ms_per_frame']:.1f}" if timed else row["status"],
        f"{row['times_torch_eager']:.2f}" if timed else "",
        f"{row['error']:.1e}" if "error" in row else "",
        f"{row['build_s']:.0f}",
    ]


def versions() -> dict[str, str]:
    """Of the runtimes."""
    found = {}
    for name in ("torch", "transformers", "onnxruntime", "openvino"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write; the status of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="of each runtime (default: torch's)"
    )
    parser.add_argument("--small", action="store_true", help="small models, to try the script")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks"), metavar="DIR", help="for the report")
    args = parser.parse_args(argv)
    check_output(args.output, folder=True)
    torch.set_num_threads(args.threads)
    scale = SMALL if args.small else FULL
    fixed = {"scale": "small" if args.small else "full", "processor": processor_name(), "threads": args.threads,
             "versions": versions()}  # fmt: skip
    facts = {"machine": machine(CPU), "picture": list(scale.picture)}
    measurement = Measurement(
        args.output / "cpu_runtimes.json",
        fixed,
        facts,
        save=lambda record: write_atomically(args.output / "cpu_runtimes.md", as_markdown(record).encode()),
    )

    def scratch(rows: Callable[[Path], Iterator[Row]]) -> Iterator[Row]:
        with tempfile.TemporaryDirectory() as folder:
            yield from rows(Path(folder))

    parts = [
        Part(name, partial(scratch, lambda folder, name=name: measure(name, scale, folder, measurement.say)))
        for name in ("student", "teacher")
    ]
    parts.append(Part("ask", partial(scratch, lambda folder: ask_by_step(scale, folder, measurement.say))))
    code = measurement.run(parts)
    if scale == FULL:
        fill(DOCS, tables(measurement.record))
    return code


if __name__ == "__main__":
    sys.exit(main())
