"""Where should a student start: from its teacher, from another ViT of its own width, or from nothing?

python benchmarks/student_starts.py     # writes student_starts.json beside this file; three minutes of one core

On toyworld, with the clips, targets and optimizer of small_students.py. The other ViT is one of timm's, as wide and as
deep as the student; it first learns to read color, shape and place from single frames, as the toyworld teacher did.
Its mean and std are not the teacher's. A student of the same shape then learns from the toyworld teacher for the same
steps from each start; three seeds (order of the clips, random weights). The other ViT is trained once.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from small_students import Arm, World, config_of, from_teacher, make_world, train
from small_students import Setup as Clips
from torch import nn

from liteframe import LiteFrameEncoder
from liteframe.files import write_atomically
from liteframe.models.student.weight_selection import select_from_vit
from liteframe.models.teacher.base import HALVES, Teacher
from liteframe.models.teacher.timm_vit import TimmTower
from liteframe.toyworld.scenes import render, scene_for
from liteframe.toyworld.vision_pretrain import GRID, PatchHeads, owners, view_batches
from liteframe.training.report import environment

STARTS = ("teacher", "other ViT", "random")


@dataclass(frozen=True)
class Setup:
    """What to run: channels and steps of a student; steps, frames in a batch and scenes of the other ViT; clips."""

    dim: int = 64
    steps: int = 80
    rate: float = 2e-3
    seeds: tuple[int, ...] = (0, 1, 2)
    vit_steps: int = 500
    vit_batch: int = 32
    vit_scenes: int = 64
    clips: Clips = field(default_factory=lambda: Clips(held_out=24))


def other_vit(setup: Setup, world: World) -> tuple[Teacher, dict[str, float]]:
    """A ViT of timm that reads color, shape and place of what a patch shows; with the figures of its last step."""
    torch.manual_seed(0)
    config = config_of(setup.dim, world.teacher)
    model: Any = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=config.image_size, patch_size=config.patch_size,
        embed_dim=config.dim, depth=config.depth, num_heads=config.heads, mlp_ratio=config.hidden / config.dim,
    )  # fmt: skip
    heads = PatchHeads(config.dim)
    scenes = [scene_for(1, index) for index in range(setup.vit_scenes)]
    videos, owner = np.stack([render(scene) for scene in scenes]), np.stack([owners(scene) for scene in scenes])
    batches = view_batches(videos, scenes, owner, setup.vit_batch, seed=0)
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], lr=1e-3)
    figures: dict[str, float] = {}
    for step, (frames, *labels) in zip(range(setup.vit_steps), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50, (setup.vit_steps - step) / 100)
        tokens = model.forward_features((torch.from_numpy(frames[:, 0]).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
        patches = tokens[:, 1:].unflatten(1, (GRID, GRID))
        loss, figures = heads.losses(patches, tokens[:, 0], *labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    tower = TimmTower(model)
    vit = Teacher(
        tower, name="timm/vit_tiny_patch16_224", dim=tower.dim, patch_size=tower.patch_size,
        image_size=tower.image_size, image_mean=HALVES[0], image_std=HALVES[1], resize="squash",
    )  # fmt: skip
    return vit, figures


def started(start: str, world: World, vit: Teacher, dim: int) -> LiteFrameEncoder:
    """A student with the weights of its start, its head in raw space."""
    if start == "teacher":
        return from_teacher(world, dim)
    student = LiteFrameEncoder(config_of(dim, world.teacher))
    if start == "other ViT":
        student.load_state_dict(student.state_dict() | select_from_vit(vit, student.config).weights)
    world.target.standardizer.fold(student.head)  # a random head emits standardized features
    return student


def measure(setup: Setup) -> dict[str, Any]:
    """All runs, as a record."""
    began, runs = time.process_time(), []
    world = make_world(setup.clips)
    vit, figures = other_vit(setup, world)
    for seed in setup.seeds:
        for start in STARTS:
            torch.manual_seed(seed)
            student = started(start, world, vit, setup.dim)
            outcome = train(world, setup.clips, Arm(setup.dim, start, setup.rate, 1.0, setup.steps), student, seed)
            runs.append({"start": start, "seed": seed, "cosine": outcome.cosine, "loss": outcome.final_loss})
            print(f"{time.process_time() - began:5.0f} s  {runs[-1]}", flush=True)
    cosines = {start: [run["cosine"]["end"] for run in runs if run["start"] == start] for start in STARTS}
    return {
        **environment(torch.device("cpu")),
        "cpu_seconds": round(time.process_time() - began),
        "setup": asdict(setup),
        "other_vit": figures,
        "runs": runs,
        "cosine": {
            start: {"mean": statistics.fmean(found), "std": statistics.stdev(found) if len(found) > 1 else 0.0}
            for start, found in cosines.items()
        },
    }


def main(folder: Path, setup: Setup) -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    write_atomically(folder / "student_starts.json", (json.dumps(measure(setup), indent=1) + "\n").encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent, help="folder of the file")
    main(parser.parse_args().output, Setup())
