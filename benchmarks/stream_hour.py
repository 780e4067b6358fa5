"""An hour at 1 frame a second: what memories hold, what a clip costs, and what a question waits for.

python benchmarks/stream_hour.py [--frames 3600] [-o benchmarks]

Measured on the tiny InternVL of toyworld with a random student; at the sizes of Qwen2.5-7B, what is held follows from
the same count of entries. Without labels, so that an hour fits the tiny model's 8192 positions. Writes
stream_hour.{json,md}.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stream_memory import QUESTION, ROOT, measured, small_pair

from liteframe.answer.memory import parse_memory
from liteframe.answer.positions import Compact, Keep
from liteframe.answer.session import StreamSession
from liteframe.files import write_atomically, write_json
from liteframe.training.report import environment

MEMORIES = (
    "all",
    "window:256",
    "halving:256",
    "random:256",
    "bank:256",
    "clips:256",
    "sink_window:256",
    "saliency:256",
)
MEMORIES_7B = ("all", "window:6144", "sink_window:6144")
LARGE = {"layers": 28, "heads": 4, "head": 128, "width": 3584, "itemsize": 2}  # Qwen2.5-7B in bfloat16
SLOT = {"tokens": 64, "text": 2}  # of an 8B model at 448 pixels: <img> and </img>


def main(argv: Sequence[str] | None = None) -> None:
    """Run each memory, then the arithmetic; write both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=3600, help="frames of the hour (default 3600)")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks")
    args = parser.parse_args(argv)
    pair = small_pair()
    facts = {
        "frames": args.frames,
        "environment": environment(torch.device("cpu")),
        "offline": offline(pair, args.frames),
        "memories": [online(pair, name, args.frames) for name in MEMORIES],
        "large": [large(name, args.frames // 4) for name in MEMORIES_7B],
    }
    write_json(args.output / "stream_hour.json", facts)
    write_atomically(args.output / "stream_hour.md", table(facts).encode())
    print(table(facts))


def online(pair: Any, name: str, frames: int) -> dict[str, Any]:
    """Show the hour clip by clip, then ask."""
    memory = parse_memory(name)
    positions = Compact() if memory.of_cache else Keep()
    session = StreamSession(*pair, memory, labels="none", positions=positions)
    noise = drifting()
    begin = time.monotonic()
    for first in range(0, frames, session.clip_frames):
        session.add(noise[first % 997 : first % 997 + min(session.clip_frames, frames - first)])
    seconds = time.monotonic() - begin
    size = session.size()
    return {
        "memory": name,
        "of_cache": memory.of_cache,
        "tokens": size.tokens,
        "bytes": size.bytes,
        "expected_bytes": expected_bytes(session),
        "milliseconds_per_clip": round(1000 * seconds / (frames / session.clip_frames), 2),
        "milliseconds_to_first_token": first_token(session),
    }


def offline(pair: Any, frames: int) -> dict[str, Any]:
    """See the whole hour when a question comes, and read it all."""
    session = StreamSession(*pair, labels="none")
    noise = drifting()
    begin = time.monotonic()
    session.add(np.concatenate([noise[first % 997 : first % 997 + 16] for first in range(0, frames, 16)])[:frames])
    return {"encode_seconds": round(time.monotonic() - begin, 2), "prefill_milliseconds": first_token(session)}


def first_token(session: StreamSession) -> float:
    """Milliseconds of the question's own work, the better of two."""
    times = []
    for _ in range(2):
        begin = time.monotonic()
        session.score(QUESTION, ["left", "right"])
        times.append(time.monotonic() - begin)
    return round(1000 * min(times), 1)


def drifting() -> np.ndarray:
    """Frames [1013,64,64,3] of noise."""
    return np.random.default_rng(0).integers(0, 256, (1013, 64, 64, 3), dtype=np.uint8)


def expected_bytes(session: StreamSession) -> int | None:
    """What a session holds by the count of its entries; None of memories that keep sums beside them."""
    text = session.model.config.text_config
    if session.memory.name in ("bank", "clips"):
        return None
    if not session.memory.of_cache:
        slots = len(session.memory.state()["slots"])
        return token_bytes(session.memory.tokens, slots, text.hidden_size, 4)
    past = session.memory.context("")
    made = past.made is not None
    head = text.hidden_size // text.num_attention_heads
    return entry_bytes(len(past), text.num_hidden_layers, text.num_key_value_heads, head, 4, made)


def token_bytes(tokens: int, slots: int, width: int, itemsize: int) -> int:
    """Tokens before the language model: each, its frame, place and size; of slots their frames and times; the grid."""
    return tokens * (width * itemsize + 8 + 8 + 4) + slots * (3 * 8 + 2 * 8) + 2 * 8


def entry_bytes(entries: int, layers: int, heads: int, head: int, itemsize: int, made: bool = False) -> int:
    """Entries of a KV cache, with five numbers each; `made`: keys are kept as they were made, too."""
    return layers * entries * ((3 if made else 2) * heads * head * itemsize + 5 * 8)


def large(name: str, slots: int) -> dict[str, Any]:
    """The same at the sizes of Qwen2.5-7B, by arithmetic."""
    memory = parse_memory(name)
    held = slots if memory.budget is None else min(slots, memory.budget // SLOT["tokens"])
    tokens, entries = held * SLOT["tokens"], held * (SLOT["tokens"] + SLOT["text"])
    cache = {key: LARGE[key] for key in ("layers", "heads", "head", "itemsize")}
    of_tokens = token_bytes(tokens, held, LARGE["width"], LARGE["itemsize"])
    held_bytes = entry_bytes(entries, **cache) if memory.of_cache else of_tokens
    return {"memory": name, "tokens": tokens, "bytes": held_bytes, "read_first": 0 if memory.of_cache else entries}


def table(facts: dict[str, Any]) -> str:
    """The figures as Markdown."""
    whole = facts["offline"]
    lines = [
        "# An hour at 1 frame a second",
        "",
        f"{facts['frames']:,} frames of 64 x 64 through the tiny InternVL of toyworld with a random student, without "
        "labels; `python benchmarks/stream_hour.py`. Offline, all frames are encoded when the question comes "
        f"({whole['encode_seconds']} s) and read ({whole['prefill_milliseconds']} ms to the first token).",
        "",
        "| memory | tokens | bytes | ms a clip of 16 frames | ms to the first token |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in facts["memories"]:
        lines.append(
            f"| {row['memory']} | {row['tokens']} | {row['bytes']:,} | {row['milliseconds_per_clip']} | "
            f"{row['milliseconds_to_first_token']} |"
        )
    lines += [
        "",
        "At the sizes of Qwen2.5-7B in bfloat16 and 64 tokens a slot, by the same count (not measured):",
        "",
        "| memory | tokens | MiB | tokens that are read before the question |",
        "|---|---:|---:|---:|",
    ]
    for row in facts["large"]:
        lines.append(f"| {row['memory']} | {row['tokens']:,} | {row['bytes'] / 2**20:.1f} | {row['read_first']:,} |")
    return "\n".join([*lines, "", measured(facts["environment"]), ""])


if __name__ == "__main__":
    main()
