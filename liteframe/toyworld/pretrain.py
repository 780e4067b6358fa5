"""Train the tiny InternVL that the repository ships: `python -m liteframe.toyworld.pretrain OUT`.

Two stages, each seeded: the ViT learns to see (`vision_pretrain`), then projector and language model learn to answer
from what it sees, frozen (`language_pretrain`), first at a fixed number of frames, then at four to thirty-two.
`--family qwen3_vl` makes a tiny Qwen3-VL in the same way, which is not shipped.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import transformers
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from liteframe.files import replacing, write_json
from liteframe.models.teacher.huggingface import make_tower
from liteframe.models.vlm.family import family_of
from liteframe.toyworld import language_pretrain, vision_pretrain
from liteframe.toyworld.model import build_model, build_processor, build_tokenizer
from liteframe.toyworld.questions import CHANCE
from liteframe.toyworld.qwen import build_qwen_model, build_qwen_processor, build_qwen_tokenizer
from liteframe.toyworld.scenes import FRAMES, SIZE, Scene, render, scene_for, write_video

BUILDERS: dict[str, tuple[Callable[..., Any], ...]] = {  # of tokenizer, model and processor
    "internvl": (build_tokenizer, build_model, build_processor),
    "qwen3_vl": (build_qwen_tokenizer, build_qwen_model, build_qwen_processor),
}
HELD_OUT = 150
FRAME_COUNTS = (4, 8, 16, 32)
VIDEOS_OF = {4: 8, 8: 6, 16: 4, 32: 2}  # videos in a batch: small, because steps matter more than their size here
CURRICULUM = ((4,), (8,), (8,), (4, 8, 8, 16, 16, 32))  # frame counts in each quarter: motion needs a fixed one first
QUESTIONS = 11  # every question of a scene


def rendered_videos(scenes: list[Scene], progress: Progress) -> np.ndarray:
    """The scenes, written as H.264 and read back: uint8 `[V, T, H, W, 3]`."""
    videos = np.empty((len(scenes), FRAMES, SIZE, SIZE, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        for i, scene in enumerate(progress.track(scenes, description="render")):
            write_video(path, render(scene))
            with av.open(str(path)) as container:
                videos[i] = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return videos


def normalized(frames: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 `[..., H, W, 3]` to a ViT's input `[..., 3, H, W]`."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, -3).float() / 255
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def optimize(
    parameters: list[nn.Parameter],
    steps: int,
    peak: float,
    step: Callable[[int], tuple[Tensor, str]],
    progress: Progress,
    name: str,
) -> None:
    """One cycle of AdamW on CPU; `step` gives the loss of step i, and words for the line of progress."""
    optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.1)
    task = progress.add_task(name, total=steps)
    for i in range(steps):
        loss, words = step(i)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        progress.update(task, advance=1, description=f"{name}: {words}")
        if (i + 1) % 200 == 0:
            progress.console.log(f"{name} step {i + 1}: {words}")


def train_vision(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    videos: np.ndarray,
    scenes: list[Scene],
    owner: np.ndarray,
    *,
    seed: int,
    steps: int,
    batch: int,
    progress: Progress,
) -> None:
    """Stage one on single frames of the videos, `batch` a step, or on pairs where the tower sees pairs."""
    family = family_of(model.config.model_type)
    tower = make_tower(family.parts(model).tower)
    if "cls" not in tower.saliencies:
        tower.weigh_by("mean")
    looks = processor.video_processor
    heads = vision_pretrain.PatchHeads(tower.dim, family.temporal_patch)
    batches = vision_pretrain.view_batches(videos, scenes, owner, batch, seed, family.temporal_patch)

    def step(_: int) -> tuple[Tensor, str]:
        frames, *labels = next(batches)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            seen = tower(normalized(frames, looks.image_mean, looks.image_std))
        query = None if seen.query is None else seen.query[:, 0].float()
        loss, figures = heads.losses(seen.patches[:, 0].float(), query, *labels)
        return loss, ", ".join(f"{name} {value:.3f}" for name, value in figures.items())

    optimize([*tower.parameters(), *heads.parameters()], steps, 1.5e-3, step, progress, "vision")


def _loss(
    model: PreTrainedModel, videos: np.ndarray, packer: language_pretrain.Packer, batch: language_pretrain.Packed
) -> tuple[Tensor, Tensor, Tensor]:
    looks = packer.processor.video_processor
    frames = normalized(videos[batch.video[:, None], batch.frames.numpy()], looks.image_mean, looks.image_std)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = packer.family.encode_frames(model, frames.flatten(0, 1))  # [B*S,n,D]
        return language_pretrain.answer_loss(model, tokens.reshape(len(frames), -1, tokens.shape[-1]), batch)


def train_language(
    model: PreTrainedModel,
    videos: np.ndarray,
    packer: language_pretrain.Packer,
    *,
    seed: int,
    steps: int,
    progress: Progress,
    curriculum: Sequence[tuple[int, ...]] = CURRICULUM,
    peak: float = 2e-3,
) -> None:
    """One cycle of stage two on videos uint8 `[V, T, H, W, 3]`; frame counts as the curriculum says."""
    rng = np.random.default_rng(seed)
    parts = family_of(model.config.model_type).parts(model)
    model.requires_grad_(False)
    parameters = [*parts.projector.parameters(), *parts.language_model.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)

    def step(i: int) -> tuple[Tensor, str]:
        counts = curriculum[len(curriculum) * i // steps]
        frames = int(rng.choice(counts))
        batch = packer.draw(VIDEOS_OF[frames], frames, QUESTIONS)
        loss, read_out, right = _loss(model, videos, packer, batch)
        words = f"loss {float(loss.detach()):.3f}, read-outs {float(read_out.detach()):.3f}"
        return loss + 0.3 * read_out, f"{words}, right {float(right.float().mean()):.3f}"

    optimize(parameters, steps, peak, step, progress, "language")


@torch.inference_mode()
def held_out_accuracy(
    model: PreTrainedModel, videos: np.ndarray, packer: language_pretrain.Packer
) -> dict[str, dict[str, float]]:
    """Accuracy by frame count and question type on 240 draws of the packer's videos."""
    table: dict[str, dict[str, float]] = {}
    for frames in FRAME_COUNTS:
        right: dict[str, list[float]] = defaultdict(list)
        for _ in range(10):
            batch = packer.draw(24, frames, QUESTIONS)
            _, _, good = _loss(model, videos, packer, batch)
            for b, video in enumerate(batch.video):
                for q, kind in enumerate(packer.kinds(int(video), batch.order[b])):
                    right[kind].append(float(good[b, q]))
        table[str(frames)] = {kind: round(float(np.mean(values)), 4) for kind, values in sorted(right.items())}
    return table


CARD = """---
license: apache-2.0
library_name: transformers
---

A tiny {family} that answers questions about the moving shapes of LiteFrame's toyworld. Made from nothing by
`python -m liteframe.toyworld.pretrain`; its videos and weights share the license of the repository.
"""


def save_checkpoint(model: PreTrainedModel, processor: ProcessorMixin, folder: Path, card: str = CARD) -> None:
    """An ordinary checkpoint with its processor; weights are stored in bfloat16 and load as float32, for CPUs."""
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "README.md").write_text(card.format(family=type(model).__name__), encoding="utf-8")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"dtype": "bfloat16"', '"dtype": "float32"'))


def main(argv: list[str] | None = None) -> int:
    """Render, train both stages, save the checkpoint with its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write (an earlier one is replaced)")
    parser.add_argument("--family", choices=BUILDERS, default="internvl")
    parser.add_argument("--videos", type=int, default=2000, help="videos to render, the last 150 held out")
    parser.add_argument("--vision-steps", type=int, default=1500)
    parser.add_argument("--vision-batch", type=int, default=64, help="frames, or pairs of frames, of such a step")
    parser.add_argument("--language-steps", type=int, default=4400)
    parser.add_argument("--restart-steps", type=int, default=800, help="second, lower cycle of the language stage")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    if args.videos <= HELD_OUT:
        parser.error(f"--videos must be more than the {HELD_OUT} held out, got {args.videos}")
    torch.manual_seed(args.seed)
    began = time.monotonic()
    make_tokenizer, make_model, make_processor = BUILDERS[args.family]
    tokenizer = make_tokenizer()
    model, processor = make_model(tokenizer), make_processor(tokenizer)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    scenes = [scene_for(args.seed, i) for i in range(args.videos)]
    known, held_out = slice(None, -HELD_OUT), slice(-HELD_OUT, None)
    with Progress(*columns) as progress:
        videos = rendered_videos(scenes, progress)
        owner = np.stack([vision_pretrain.owners(s) for s in progress.track(scenes, description="label")])
        given = {"seed": args.seed, "progress": progress}
        vision = {"steps": args.vision_steps, "batch": args.vision_batch, **given}
        train_vision(model, processor, videos[known], scenes[known], owner[known], **vision)
        packer = language_pretrain.Packer(model, processor, scenes[known], owner[known], args.seed)
        train_language(model, videos[known], packer, steps=args.language_steps, **given)
        # a second, lower cycle: the first leaves some shapes that are not yet looked up reliably
        packer = language_pretrain.Packer(model, processor, scenes[known], owner[known], args.seed + 2)
        again = {"curriculum": CURRICULUM[-1:], "peak": 8e-4, **given}
        train_language(model, videos[known], packer, steps=args.restart_steps, **again)
    model = model.eval().to(torch.bfloat16).float()  # the figures below are those of the weights that are stored
    packer = language_pretrain.Packer(model, processor, scenes[held_out], owner[held_out], args.seed)
    accuracy = held_out_accuracy(model, videos[held_out], packer)
    record = {
        "command": " ".join(["python -m liteframe.toyworld.pretrain", *(sys.argv[1:] if argv is None else argv)]),
        "seconds": round(time.monotonic() - began),
        "held-out accuracy by frames and question type": accuracy,
        "chance": CHANCE,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    with replacing(args.out) as temporary:
        save_checkpoint(model, processor, temporary)
        write_json(temporary / "pretraining.json", record)
    print(json.dumps(record, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
