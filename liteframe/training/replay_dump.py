"""RUN/replay/step_000123/: everything that a step's loss and gradients came from, in safetensors and JSON.

`batch_<rank>.safetensors` holds the tensors of that rank's batches and the random states they started from,
`weights.safetensors` the trained weights and statistics, `config.yaml` the run's configuration, and `state.json` the
rest, with the sha256 of the other files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from liteframe.files import fsync_path, write_json
from liteframe.training.sharded import whole_state
from liteframe.training.skipped_steps import plain

if TYPE_CHECKING:
    from liteframe.training.guarded_module import GuardedModule

FORMAT = 1


@dataclass
class Turn:
    """One batch of the step under way; a step has several where gradients are accumulated.

    Attributes:
        batch: what the loss came from, or None where it was not kept.
        clips: rows of key and path.
        rng: random states before the forward pass, by device type.
        loss: what was differentiated.
        finite: bool [4], by the names in guard.WATCHED.
    """

    batch: Any
    clips: list[dict[str, Any]]
    rng: dict[str, Tensor]
    loss: Tensor
    finite: Tensor


class Dump(NamedTuple):
    """A dump, read and checked.

    Attributes:
        state: what state.json holds.
        weights: the module's state dict.
        batches: tensors of each rank, by their names in the file.
    """

    state: dict[str, Any]
    weights: dict[str, Tensor]
    batches: list[dict[str, Tensor]]


def write_dump(module: GuardedModule, run: Path, row: dict[str, Any], turns: list[Turn]) -> Path:
    """Write RUN/replay/step_<number>; all ranks call it, and the folder appears whole or not at all.

    Args:
        module: whose step it was.
        run: the run's folder.
        row: of skipped_steps.jsonl, with all clips.
        turns: this rank's batches.

    Returns:
        The folder.
    """
    trainer = module.trainer
    folder = run / "replay" / f"step_{row['step']:06d}"
    temporary = folder.with_name(f".{folder.name}.tmp")
    if trainer.is_global_zero:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    trainer.strategy.barrier()
    tensors: dict[str, Tensor] = {}
    fields = []
    for number, turn in enumerate(turns):
        batch = module.remade(turn)
        named, others = split_batch(batch)
        named |= {f"rng_{device}": state for device, state in turn.rng.items()}
        named |= {f"extra_{name}": tensor for name, tensor in module.extra_tensors(batch).items()}
        tensors |= {f"{number}.{name}": tensor.detach().cpu().clone() for name, tensor in named.items()}
        fields.append({**others, "recorded_loss": plain(float(turn.loss))})
    (temporary / f"fields_{trainer.global_rank}.json").write_text(json.dumps(fields))
    save_file(tensors, temporary / f"batch_{trainer.global_rank}.safetensors")
    # All ranks hold a part of each where weights are sharded.
    weights = whole_state(module)
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        save_file(weights, temporary / "weights.safetensors")
        shutil.copyfile(run / "config.yaml", temporary / "config.yaml")
        state = {
            "format": FORMAT,
            "module": type(module).__name__,
            **row,
            "world_size": trainer.world_size,
            "accumulate": trainer.accumulate_grad_batches,
            "precision": str(trainer.precision),
            "attributes": {name: getattr(module, name) for name in module.replayed},
            "sha256": {path.name: _digest(path) for path in sorted(temporary.iterdir())},
        }
        write_json(temporary / "state.json", state)
        for path in temporary.iterdir():
            fsync_path(path)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        fsync_path(folder.parent)
    trainer.strategy.barrier()
    return folder


def read_dump(folder: Path) -> Dump:
    """Read a dump.

    Raises:
        ValueError: a file is missing, damaged or was changed.
    """
    if not (folder / "state.json").is_file():
        raise ValueError(f"{folder} is not a dump of a step (no state.json); give a folder RUN/replay/step_...")
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        known, digests, world_size = state["format"], dict(state["sha256"]), int(state["world_size"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'state.json'} is damaged ({error!r}); write the dump again") from error
    if known != FORMAT:
        raise ValueError(f"{folder} has format {known}, this version reads {FORMAT}; use the version that wrote it")
    ranks = [f"{kind}_{rank}.{end}" for rank in range(world_size) for kind, end in _RANK_FILES]
    for name in ("weights.safetensors", "config.yaml", *ranks):
        if not (folder / name).is_file() or _digest(folder / name) != digests.get(name):
            raise ValueError(f"{folder / name} is missing or is not the file that was written; copy the dump again")
    state["fields"] = [json.loads((folder / f"fields_{rank}.json").read_text()) for rank in range(world_size)]
    try:
        batches = [load_file(folder / f"batch_{rank}.safetensors") for rank in range(world_size)]
        return Dump(state, load_file(folder / "weights.safetensors"), batches)
    except SafetensorError as error:
        raise ValueError(f"{folder}: {error}; copy the dump again") from error


_RANK_FILES = (("batch", "safetensors"), ("fields", "json"))


def split_batch(batch: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a named tuple, and its other fields, which JSON can hold."""
    fields = batch._asdict()
    tensors = {name: value for name, value in fields.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in fields.items() if name not in tensors}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
