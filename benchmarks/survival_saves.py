"""A process that saves checkpoints in a loop is killed at random moments; what it leaves must be readable."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from liteframe.training.checkpoint_folder import AtomicCheckpointIO, CheckpointFolder

MEGABYTES = (1, 4, 16, 100)


def contents(step: int, megabytes: int) -> dict[str, Any]:
    """A checkpoint that can be told from that of any other step."""
    generator = torch.Generator().manual_seed(step)
    return {"step": step, "weights": torch.rand(megabytes * 250_000, generator=generator), "small": torch.tensor(step)}


def save_safely(folder: Path, step: int, checkpoint: dict[str, Any]) -> None:
    """What a training run does."""
    named, io = CheckpointFolder(folder), AtomicCheckpointIO()
    previous = next(iter(named.named()), None)
    io.save_checkpoint(checkpoint, named.file(step))
    named.add(step, io.written.bytes, io.written.sha256, previous)


def save_plainly(folder: Path, step: int, checkpoint: dict[str, Any]) -> None:
    """torch.save over the same file, for contrast."""
    torch.save(checkpoint, folder / "last.ckpt")


def kill_saves(
    folder: Path,
    kills: int,
    seed: int,
    save: Callable[[Path, int, dict[str, Any]], None],
    sizes: tuple[int, ...] = MEGABYTES,
) -> dict[str, Any]:
    """Kill `kills` processes that save in a loop.

    Returns:
        how many kills left nothing readable, lost a checkpoint whose save had returned, left a temporary file.
    """
    rng, unreadable, lost, left_over, step = random.Random(seed), 0, 0, 0, 0
    promised = dict.fromkeys(sizes, 0)
    for number in range(kills):
        megabytes = sizes[number % len(sizes)]
        home = folder / f"{megabytes}MB"
        home.mkdir(parents=True, exist_ok=True)
        CheckpointFolder(home).clean()
        returned = _kill_one(home, step + 1, megabytes, rng, save)
        if returned:
            promised[megabytes] = step + returned
        left_over += any(home.glob(".*.tmp"))
        found = _readable(home, megabytes)
        unreadable += found is None
        lost += found is not None and found < promised[megabytes]
        step += returned + 1
    return {
        "kills": kills, "megabytes": list(sizes), "unreadable": unreadable, "lost": lost,
        "left_over": left_over,
    }  # fmt: skip


def _kill_one(home: Path, first: int, megabytes: int, rng: random.Random, save: Callable[..., None]) -> int:
    """Fork a process that saves steps from `first` on, kill it; returns the number of saves that returned."""
    told, tell = os.pipe()
    if (child := os.fork()) == 0:
        os.close(told)
        for step in range(first, first + 1_000_000):
            checkpoint = contents(step, megabytes)
            os.write(tell, b"+")
            save(home, step, checkpoint)
            os.write(tell, b".")
    os.close(tell)
    os.read(told, 1)  # the first save has begun
    began = time.monotonic()
    heard = b""
    if not (home / "last.ckpt").exists():  # there must be something to lose
        while b"." not in heard:
            heard += os.read(told, 1)
    time.sleep(rng.uniform(0, 3 * max(0.02, time.monotonic() - began, 0.004 * megabytes)))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while data := os.read(told, 1 << 16):
        heard += data
    os.close(told)
    return heard.count(b".")


def _readable(home: Path, megabytes: int) -> int | None:
    """The step of what a resumed run would read, if it is what was written."""
    try:
        path, _ = CheckpointFolder(home).find_whole()
        found = AtomicCheckpointIO().load_checkpoint(path)
    except ValueError:
        return None
    wanted = contents(found["step"], megabytes)
    return found["step"] if torch.equal(found["weights"], wanted["weights"]) else None
