"""LMA at the true size of InternVL3-8B: plan, train, ask and export, with the time and memory that each command takes.

python benchmarks/lma_8b.py [--frames 128 256 512] [--work FOLDER] [-o benchmarks]

The checkpoint has the published shape, names and dtype (bfloat16), random weights, and the tokenizer of toyworld: time
and memory do not depend on what weights hold. Needs 33 GB of disk in --work. Writes lma_8b.{json,md}.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import InternVLForConditionalGeneration

from liteframe.bench.first_token import write_sample
from liteframe.bench.systems import internvl3_8b_config
from liteframe.files import write_atomically, write_json
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.toyworld.model import build_processor, build_tokenizer
from liteframe.training.report import environment

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "lma" / "internvl3_8b.yaml"
QUESTION, ANSWER = "Which way does the red circle move?", "left"
NOISE_VALUES = 1 << 24
FPS, RATE = 25, 4  # of the video that write_sample makes, and frames a second that are sampled


class Inputs(NamedTuple):
    """What a user brings."""

    vlm: Path
    encoder: Path
    rows: Path
    video: Path
    parameters: int


def main(argv: Sequence[str] | None = None) -> None:
    """Make the inputs, run the commands, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", help="budgets; default: 128 256 512, on a CPU 8")
    parser.add_argument("--work", type=Path, help="where checkpoint and export lie meanwhile; default: TMPDIR")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks")
    args = parser.parse_args(argv)
    on_gpu = torch.cuda.is_available()
    budgets = args.frames or ([128, 256, 512] if on_gpu else [8])
    with tempfile.TemporaryDirectory(dir=args.work) as scratch:
        work = Path(scratch)
        inputs = make_inputs(work, max(budgets))
        where = environment(torch.device("cuda" if on_gpu else "cpu"))
        where["command"] = "python benchmarks/lma_8b.py"  # not where this machine has its folders
        record: dict[str, Any] = {**where, "parameters": inputs.parameters, "plans": [], "commands": []}
        for frames in budgets:
            record["plans"].append(plan(inputs, work, frames))
            save(record, args.output)
        for row in road(inputs, work, budgets[0]):
            record["commands"].append(row)
            save(record, args.output)


def save(record: dict[str, Any], output: Path) -> None:
    """Write what has been measured so far."""
    write_json(output / "lma_8b.json", record)
    write_atomically(output / "lma_8b.md", as_markdown(record).encode())


def make_inputs(work: Path, frames: int) -> Inputs:
    """Checkpoint, encoder, a video that gives `frames` frames at the sampled rate, and rows about it."""
    torch.manual_seed(0)
    config, student = internvl3_8b_config(), LiteFrameConfig()
    processor = build_processor(build_tokenizer())
    config.image_token_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    for part in (processor.image_processor, processor.video_processor):
        part.size = {"height": student.image_size, "width": student.image_size}
    with torch.device("meta"):
        model = InternVLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    fill(model.to_empty(device="cpu"))
    model.save_pretrained(work / "vlm", max_shard_size="5GB")
    processor.save_pretrained(work / "vlm")
    LiteFrameEncoder(student).save_pretrained(work / "encoder")
    write_sample(work / "video.mp4", frames * FPS // RATE, (student.image_size, student.image_size))
    messages = [{"role": "user", "content": f"<video>\n{QUESTION}"}, {"role": "assistant", "content": ANSWER}]
    row = json.dumps({"messages": messages, "videos": [str(work / "video.mp4")]}) + "\n"
    (work / "rows.jsonl").write_text(row * 8)
    count = sum(weight.numel() for weight in model.parameters())
    return Inputs(work / "vlm", work / "encoder", work / "rows.jsonl", work / "video.mp4", count)


@torch.no_grad()
def fill(model: torch.nn.Module) -> None:
    """Small random matrices; vectors as a new model has them. One block of noise serves all: drawing 8B takes long."""
    noise = (0.02 * torch.randn(NOISE_VALUES)).bfloat16()
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            weight.fill_(0.1 if "lambda" in name else float(name.endswith("norm.weight") or "layernorm" in name))
            continue
        for part in weight.view(-1).split(NOISE_VALUES):
            part.copy_(noise[: part.numel()])


def plan(inputs: Inputs, work: Path, frames: int) -> dict[str, Any]:
    """A few steps of one sample of so many frames, as `liteframe plan` measures them."""
    out = work / f"plan_{frames}.json"
    cost = measured("-m", "liteframe", "plan", *recipe(inputs, frames), "--steps", "2", "--json", str(out))
    found = json.loads(out.read_text())
    return {
        "frames": frames,
        "tokens": int(found["data"]["tokens_of_a_video"].replace(",", "")),
        "seconds_per_sample": found["warm_up"]["seconds_per_step"],
        "precision": found["warm_up"]["precision"],
        "flops_of_a_sample": found["flops_of_a_sample"]["flops"],
        "memory": found["memory_of_a_process"],
        "resident_gib": cost["resident_gib"],
    }


def road(inputs: Inputs, work: Path, frames: int) -> Iterator[dict[str, Any]]:
    """Train two steps, ask, export: what each command took, and how exact the export is."""
    run, asked = work / "run", ["--frames", str(frames), "--max-new-tokens", "4"]
    parts = ["--vlm", str(inputs.vlm), "--encoder", str(inputs.encoder), "--adapter", str(run / "adapter")]
    commands = {
        "train_lma.py fit, 2 steps": ["train_lma.py", "fit", *recipe(inputs, frames), "--run", str(run),
                                      "--trainer.max_steps", "2"],
        "liteframe ask, 4 tokens": ["-m", "liteframe", "ask", *parts, *asked, str(inputs.video), QUESTION],
        "liteframe export hf-vlm": ["-m", "liteframe", "export", "hf-vlm", str(run), str(work / "out")],
    }  # fmt: skip
    for name, words in commands.items():
        row = {"command": name, **measured(*words)}
        if (path := work / "out" / "parity.json").is_file():
            parity = json.loads(path.read_text())
            row |= {key: parity[key] for key in ("max_abs_difference", "rounding_to_saved_dtype", "saved_dtype")}
            row["largest_logit"] = max(case["largest_logit"] for case in parity["cases"])
        yield row


def recipe(inputs: Inputs, frames: int) -> list[str]:
    """The recipe's YAML with these inputs, one sample a step."""
    return [
        *("--config", str(CONFIG), "--model.vlm", str(inputs.vlm), "--model.encoder", str(inputs.encoder)),
        *("--data.conversations", str(inputs.rows), "--data.frames", f"[{frames}]"),
        *("--data.fps", f"[{RATE},{RATE}]", "--data.batch_size", "1", "--data.workers", "0"),
    ]


def measured(*words: str) -> dict[str, Any]:
    """Run a command; seconds, and the largest resident set of it or of a process that it started.

    Raises:
        RuntimeError: it failed.
    """
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}")
    return {"seconds": time.perf_counter() - began, "resident_gib": usage.ru_maxrss / 2**20}


def as_markdown(record: dict[str, Any]) -> str:
    """Two tables: a sample of training, and the commands."""
    versions = ", ".join(f"{name} {record['versions'][name]}" for name in ("torch", "transformers"))
    where = f"{record['device']}, {record['threads']} threads, {versions}, {record['date'][:10]}"
    lines = [
        "# LMA at the size of InternVL3-8B\n",
        f"{where}. Made by `python benchmarks/lma_8b.py`: {record['parameters']:,} random weights in bfloat16 under "
        "the published names, the 87M encoder at 448 pixels, `configs/lma/internvl3_8b.yaml` with one sample a step.\n",
        "| frames | tokens | s/sample | TFLOP/s | peak memory, GiB | of it frozen weights |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for row in record["plans"]:
        seconds, rate = row["seconds_per_sample"], row["flops_of_a_sample"] / row["seconds_per_sample"] / 1e12
        peak, frozen = (row["memory"][f"{name}_bytes"] / 2**30 for name in ("measured_peak", "frozen_weights"))
        lines.append(
            f"| {row['frames']} | {row['tokens']:,} | {seconds:.2f} | {rate:.2f} | {peak:.1f} | {frozen:.1f} |"
        )
    lines += ["", f"| command, {record['plans'][0]['frames']} frames | s | resident, GiB |", "|---|---:|---:|"]
    lines += [f"| {row['command']} | {row['seconds']:.0f} | {row['resident_gib']:.1f} |" for row in record["commands"]]
    lines += [
        f"\nThe reloaded export computes what the merged model computes to {row['max_abs_difference']:.1e} (largest "
        f"logit {row['largest_logit']:.2f}); rounding the merged weights to {row['saved_dtype']} moved logits by at "
        f"most {row['rounding_to_saved_dtype']:.1e}."
        for row in record["commands"]
        if "max_abs_difference" in row
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
