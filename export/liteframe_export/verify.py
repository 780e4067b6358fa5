"""Proof that an export computes what the trained module computes, in a process that cannot import liteframe."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from liteframe_export import reload_child

TOLERANCE = 1e-4
LAST_LINES = 15
_FILES = {"inputs": "inputs.safetensors", "outputs": "outputs.safetensors", "environment": "environment.json"}


@dataclass(frozen=True)
class Reloaded:
    """What the reloaded export computed, and the versions it ran with."""

    outputs: dict[str, Tensor]
    environment: dict[str, str]


def noise_videos(frame_counts: list[int], image_size: int) -> list[Tensor]:
    """Videos of random pixels, [T,H,W,3] uint8 each, so that no mix-up of pixels, frames or videos hides.

    They are larger than image_size, of another shape, each of another height and the last one wide: resizing is seen
    too, and whether videos of different shape stand beside each other.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = [(n, image_size * 3 // 2 + i, image_size * 5 // 4, 3) for i, n in enumerate(frame_counts)]
    shapes[-1] = (frame_counts[-1], image_size * 5 // 4, image_size * 3, 3)
    return [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for shape in shapes]


def reload(folder: Path, kind: str, videos: list[Tensor], **job: Any) -> Reloaded:
    """Run reload_child.py on an export.

    Args:
        folder: the export.
        kind: "encoder" or "vlm".
        videos: [T,H,W,3] uint8 each.
        **job: `questions` and `new_tokens` for a VLM.

    Raises:
        ValueError: the process failed; the message ends with its last lines.
    """
    with tempfile.TemporaryDirectory(prefix="liteframe-export-") as scratch:
        place = Path(scratch)
        paths = {name: str(place / file) for name, file in _FILES.items()}
        save_file({f"video.{i}": video.contiguous() for i, video in enumerate(videos)}, paths["inputs"])
        description = {"kind": kind, "folder": str(folder), **paths, **job}
        (place / "job.json").write_text(json.dumps(description), encoding="utf-8")
        process = subprocess.run(
            [sys.executable, "-P", reload_child.__file__, str(place / "job.json")],
            cwd=scratch,
            env={**os.environ, "HF_MODULES_CACHE": str(place / "modules"), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode:
            tail = "\n".join(process.stderr.strip().splitlines()[-LAST_LINES:])
            raise ValueError(f"the export does not load without liteframe; nothing is written. Its last words:\n{tail}")
        environment = json.loads(Path(paths["environment"]).read_text(encoding="utf-8"))
        return Reloaded(load_file(paths["outputs"]), environment)


def difference(what: str, expected: Tensor, found: Tensor) -> float:
    """Largest absolute difference of two tensors of one shape.

    Raises:
        ValueError: the shapes differ, or the difference exceeds TOLERANCE or is not a number.
    """
    if expected.shape != found.shape:
        raise ValueError(f"{what} of the export: shape {list(found.shape)}, expected {list(expected.shape)}")
    largest = (expected.double() - found.double()).abs().max().item()
    if not largest <= TOLERANCE:
        raise ValueError(
            f"{what} of the reloaded export differ by up to {largest:.3g} from the trained module's, more than "
            f"{TOLERANCE:g}; nothing is written"
        )
    return largest


def report(cases: list[dict[str, Any]], reloaded: Reloaded) -> dict[str, Any]:
    """The parity report: the cases, their largest difference, and how it was found."""
    return {
        "max_abs_difference": max(case["max_abs_difference"] for case in cases),
        "tolerance": TOLERANCE,
        "dtype": "float32",
        "device": "cpu",
        "cases": cases,
        "blocked_imports": list(reload_child.BLOCKED),
        "reloaded_with": reloaded.environment,
    }
