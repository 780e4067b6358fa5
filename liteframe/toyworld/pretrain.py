"""Train the tiny InternVL that the repository ships: `python -m liteframe.toyworld.pretrain OUT`.

Two stages, each seeded: the ViT learns to see (`vision_pretrain`), then projector and language model learn to answer
from stored ViT features (`language_pretrain`), first at a fixed number of frames, then at four to thirty-two.
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

import av
import numpy as np
import torch
import transformers
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from liteframe.files import replacing, write_json
from liteframe.toyworld import language_pretrain, vision_pretrain
from liteframe.toyworld.model import IMAGENET_MEAN, IMAGENET_STD, build_model, build_processor, build_tokenizer
from liteframe.toyworld.questions import CHANCE
from liteframe.toyworld.scenes import FRAMES, SIZE, Scene, render, scene_for, write_video

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


def normalized(frames: np.ndarray) -> Tensor:
    """uint8 `[N, H, W, 3]` to the ViT's input `[N, 3, H, W]`."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)


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
    model: InternVLForConditionalGeneration,
    videos: np.ndarray,
    scenes: list[Scene],
    owner: np.ndarray,
    *,
    seed: int,
    steps: int,
    progress: Progress,
) -> None:
    """Stage one on single frames of the videos."""
    vit = model.model.vision_tower
    heads = vision_pretrain.PatchHeads(vit.config.hidden_size)
    batches = vision_pretrain.frame_batches(videos, scenes, owner, 64, seed)

    def step(_: int) -> tuple[Tensor, str]:
        frames, *labels = next(batches)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            tokens = vit(pixel_values=normalized(frames)).last_hidden_state
        loss, figures = heads.losses(tokens.float(), *labels)
        return loss, ", ".join(f"{name} {value:.3f}" for name, value in figures.items())

    optimize([*vit.parameters(), *heads.parameters()], steps, 1.5e-3, step, progress, "vision")


@torch.inference_mode()
def stored_features(model: InternVLForConditionalGeneration, videos: np.ndarray, progress: Progress) -> Tensor:
    """ViT patch features of every frame, float16 `[V, T, h * w, C]`."""
    vit = model.model.vision_tower.eval()
    rows = []
    for video in progress.track(videos, description="features"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rows.append(vit(pixel_values=normalized(video)).last_hidden_state[:, 1:].half())
    return torch.stack(rows)


def _loss(
    model: InternVLForConditionalGeneration, features: Tensor, batch: language_pretrain.Packed
) -> tuple[Tensor, Tensor, Tensor]:
    chosen = features[torch.from_numpy(batch.video)[:, None], batch.frames]
    side = int(chosen.shape[2] ** 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return language_pretrain.answer_loss(model, chosen.float().unflatten(2, (side, side)), batch)


def train_language(
    model: InternVLForConditionalGeneration,
    features: Tensor,
    packer: language_pretrain.Packer,
    *,
    seed: int,
    steps: int,
    progress: Progress,
    curriculum: Sequence[tuple[int, ...]] = CURRICULUM,
    peak: float = 2e-3,
) -> None:
    """One cycle of stage two on stored features `[V, T, h * w, C]`; frame counts as the curriculum says."""
    rng = np.random.default_rng(seed)
    inner = model.model

    def step(i: int) -> tuple[Tensor, str]:
        counts = curriculum[len(curriculum) * i // steps]
        frames = int(rng.choice(counts))
        loss, read_out, right = _loss(model, features, packer.draw(VIDEOS_OF[frames], frames, QUESTIONS))
        words = f"loss {float(loss.detach()):.3f}, read-outs {float(read_out.detach()):.3f}"
        return loss + 0.3 * read_out, f"{words}, right {float(right.float().mean()):.3f}"

    parameters = [*inner.multi_modal_projector.parameters(), *inner.language_model.parameters()]
    optimize(parameters, steps, peak, step, progress, "language")


@torch.inference_mode()
def held_out_accuracy(
    model: InternVLForConditionalGeneration, features: Tensor, packer: language_pretrain.Packer
) -> dict[str, dict[str, float]]:
    """Accuracy by frame count and question type on 240 draws of the packer's videos."""
    table: dict[str, dict[str, float]] = {}
    for frames in FRAME_COUNTS:
        right: dict[str, list[float]] = defaultdict(list)
        for _ in range(10):
            batch = packer.draw(24, frames, QUESTIONS)
            _, _, good = _loss(model, features, batch)
            for b, video in enumerate(batch.video):
                for q, kind in enumerate(packer.kinds(int(video), batch.order[b])):
                    right[kind].append(float(good[b, q]))
        table[str(frames)] = {kind: round(float(np.mean(values)), 4) for kind, values in sorted(right.items())}
    return table


CARD = """---
license: apache-2.0
library_name: transformers
---

A tiny InternVL that answers questions about the moving shapes of LiteFrame's toyworld. Made from nothing by
`python -m liteframe.toyworld.pretrain`; its videos and weights share the license of the repository.
"""


def save_checkpoint(
    model: InternVLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path, card: str = CARD
) -> None:
    """An ordinary checkpoint with its processor; weights are stored in bfloat16 and load as float32, for CPUs."""
    model.to(torch.bfloat16).save_pretrained(folder)
    build_processor(tokenizer).save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"dtype": "bfloat16"', '"dtype": "float32"'))


def main(argv: list[str] | None = None) -> int:
    """Render, train both stages, save the checkpoint with its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write (an earlier one is replaced)")
    parser.add_argument("--videos", type=int, default=2000, help="videos to render, the last 150 held out")
    parser.add_argument("--vision-steps", type=int, default=1500)
    parser.add_argument("--language-steps", type=int, default=4400)
    parser.add_argument("--restart-steps", type=int, default=800, help="second, lower cycle of the language stage")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    if args.videos <= HELD_OUT:
        parser.error(f"--videos must be more than the {HELD_OUT} held out, got {args.videos}")
    torch.manual_seed(args.seed)
    began = time.monotonic()
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
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
        train_vision(model, videos[known], scenes[known], owner[known], steps=args.vision_steps, **given)
        features = stored_features(model, videos, progress)
        del videos
        packer = language_pretrain.Packer(tokenizer, scenes[known], owner[known], args.seed)
        train_language(model, features[known], packer, steps=args.language_steps, **given)
        # a second, lower cycle: the first leaves some shapes that are not yet looked up reliably
        packer = language_pretrain.Packer(tokenizer, scenes[known], owner[known], args.seed + 2)
        again = {"curriculum": CURRICULUM[-1:], "peak": 8e-4, **given}
        train_language(model, features[known], packer, steps=args.restart_steps, **again)
    model = model.eval().to(torch.bfloat16).float()  # the figures below are those of the weights that are stored
    packer = language_pretrain.Packer(tokenizer, scenes[held_out], owner[held_out], args.seed)
    accuracy = held_out_accuracy(model, features[held_out], packer)
    record = {
        "command": " ".join(["python -m liteframe.toyworld.pretrain", *(sys.argv[1:] if argv is None else argv)]),
        "seconds": round(time.monotonic() - began),
        "held-out accuracy by frames and question type": accuracy,
        "chance": CHANCE,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    with replacing(args.out) as temporary:
        save_checkpoint(model, tokenizer, temporary)
        write_json(temporary / "pretraining.json", record)
    print(json.dumps(record, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
