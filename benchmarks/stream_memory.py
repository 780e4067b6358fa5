"""What memories of a stream hold and cost over many frames.

python benchmarks/stream_memory.py [--frames 100000] [--memories window:256 ...] [-o benchmarks]

The language model is the tiny InternVL of toyworld, the encoder a random student: bytes and times do not depend on what
weights hold. Each memory runs in this process, one after another. Writes stream_memory.{json,md}.
"""

import argparse
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from liteframe.answer.memory import parse_memory
from liteframe.answer.positions import Compact, Keep
from liteframe.answer.session import StreamSession
from liteframe.files import write_atomically, write_json
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.vlm.load import load_video_llm
from liteframe.toyworld.model import CHECKPOINT
from liteframe.training.report import environment

ROOT = Path(__file__).resolve().parents[1]
MEMORIES = ("window:256", "halving:256", "bank:256", "sink_window:256", "saliency:256")
QUESTION = "Which way does the red circle move?"
AT_ONCE = 128  # frames of a call


def main(argv: Sequence[str] | None = None) -> None:
    """Run each memory, write the figures after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=100_000, help="frames of the stream (default 100000)")
    parser.add_argument("--memories", nargs="+", default=MEMORIES, help="NAME:BUDGET each")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks")
    args = parser.parse_args(argv)
    pair = small_pair()
    rows: list[dict[str, Any]] = []
    for name in args.memories:
        rows.append(soak(pair, name, args.frames))
        print(rows[-1], flush=True)
        facts = {"frames": args.frames, "environment": environment(torch.device("cpu")), "memories": rows}
        write_json(args.output / "stream_memory.json", facts)
        write_atomically(args.output / "stream_memory.md", table(facts).encode())


def small_pair() -> Any:
    """The tiny InternVL of toyworld with a random student, and its processor."""
    torch.manual_seed(0)
    _, processor = load_video_llm(CHECKPOINT)
    looks = processor.video_processor
    config = LiteFrameConfig(
        dim=64, depth=3, heads=2, patch_size=8, image_size=64, teacher_dim=128, downsample={1: (2, 2, 2), 2: (2, 1, 1)},
        image_mean=tuple(looks.image_mean), image_std=tuple(looks.image_std),
    )  # fmt: skip
    return load_video_llm(CHECKPOINT, encoder=LiteFrameEncoder(config))


def soak(pair: Any, name: str, frames: int) -> dict[str, Any]:
    """Show a stream of noise that drifts to one memory; sizes on the way, and times."""
    memory = parse_memory(name)
    session = StreamSession(*pair, memory, positions=Compact() if memory.of_cache else Keep())
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (AT_ONCE + 997, 64, 64, 3), dtype=np.uint8)
    begin, marks = time.monotonic(), []
    for first in range(0, frames, AT_ONCE):
        start = first % 997
        session.add(noise[start : start + min(AT_ONCE, frames - first)])
        if first == 0 or first >= len(marks) * frames / 10:
            marks.append(mark(session))
    seconds = time.monotonic() - begin
    begin = time.monotonic()
    session.score(QUESTION, ["left", "right"])
    first_token = time.monotonic() - begin
    return {
        "memory": name,
        "seconds": round(seconds, 1),
        "milliseconds_per_clip": round(1000 * seconds / (frames / session.clip_frames), 2),
        "milliseconds_to_first_token": round(1000 * first_token, 1),
        "marks": [*marks, mark(session)],
    }


def mark(session: StreamSession) -> dict[str, int]:
    """What is held now."""
    size = session.size()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
    return {"frames": session.frames, "tokens": size.tokens, "bytes": size.bytes, "process_peak_mib": peak // 1024}


def table(facts: dict[str, Any]) -> str:
    """The figures as Markdown."""
    where = facts["environment"]
    lines = [
        "# Memories over a long stream",
        "",
        f"{facts['frames']:,} frames of 64 x 64 through the tiny InternVL of toyworld with a random student; "
        f"`python benchmarks/stream_memory.py --frames {facts['frames']}`.",
        "",
        "| memory | tokens held: after a tenth, at the end | bytes: after a tenth, at the end | ms a clip | ms to the "
        "first token | peak of the process so far, MiB: after a tenth, at the end |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in facts["memories"]:
        early, late = row["marks"][1], row["marks"][-1]
        lines.append(
            f"| {row['memory']} | {early['tokens']}, {late['tokens']} | {early['bytes']:,}, {late['bytes']:,} | "
            f"{row['milliseconds_per_clip']} | {row['milliseconds_to_first_token']} | "
            f"{early['process_peak_mib']}, {late['process_peak_mib']} |"
        )
    return "\n".join([*lines, "", measured(where), ""])


def measured(where: dict[str, Any]) -> str:
    """Where and when."""
    versions = where["versions"]
    return (
        f"Measured {where['date'][:10]}: {where['device']}, {where['threads']} threads, torch {versions['torch']}, "
        f"transformers {versions['transformers']}, seed 0."
    )


if __name__ == "__main__":
    main()
