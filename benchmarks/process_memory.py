"""Memory of a training process, its decoding workers and their decoders, sampled at step boundaries (Linux)."""

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

MIB = 2**20
ROLES = ("training", "workers", "decoders")


def children() -> dict[int, list[int]]:
    """Every process's children."""
    found: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # ended since
                continue
            # The name in parentheses may hold anything.
            found.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    return found


def memory(pid: int) -> dict[str, float]:
    """RSS and USS in MiB: pages in memory, and those of them that no other process shares."""
    values = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, number = line.split(":")
        values[name] = int(number.split()[0]) * 1024 / MIB
    return {"rss": values["Rss"], "uss": values["Private_Clean"] + values["Private_Dirty"]}


def sample(others: frozenset[int] = frozenset()) -> dict[str, dict[int, dict[str, float]]]:
    """Memory of this process, its workers and the decoders that they have started: {role: {pid: ...}}.

    Args:
        others: children of this process that do not belong to the run.
    """
    tree, me = children(), os.getpid()
    found: dict[str, dict[int, dict[str, float]]] = {"training": {me: memory(me)}, "workers": {}, "decoders": {}}
    for worker in set(tree.get(me, [])) - others:
        decoders = [pid for pid in tree.get(worker, []) if _is_decoder(pid)]
        if _is_decoder(worker):
            found["decoders"][worker] = memory(worker)
        elif decoders:
            found["workers"][worker] = memory(worker)
            found["decoders"].update((pid, memory(pid)) for pid in decoders)
    return found


def _is_decoder(pid: int) -> bool:
    return b"liteframe.data.video.child" in Path(f"/proc/{pid}/cmdline").read_bytes()


class MemorySamples(Callback):
    """Takes a sample every so many steps.

    Args:
        every: steps between two samples.
    """

    def __init__(self, every: int):
        self.every = every
        # Started before the run: not its own.
        self.others = frozenset(children().get(os.getpid(), []))
        self.rows: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Sample if it is time to."""
        if trainer.global_step % self.every == 0:
            for role, processes in sample(self.others).items():
                for pid, values in processes.items():
                    self.rows.append({"step": trainer.global_step, "role": role, "pid": pid, **values})
