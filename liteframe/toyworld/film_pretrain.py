"""Teach the language model of toyworld what films need: `python -m liteframe.toyworld.film_pretrain OUT`.

It starts from the tiny InternVL that comes along, gives its tokenizer the words that films need, and trains projector
and language model on films of one to eight scenes, as slots of 4 frames that WAP has pooled: what a student learns to
emit. Each slot is labeled with its seconds, counted from any second of the longest film, and at times only every second
or fourth slot is shown, as a memory would leave it. Longer films are never seen: what comes of them is a result. The
defaults take about twenty minutes of a CPU core.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.progress import Progress
from torch import Tensor
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from liteframe.files import replacing, write_json
from liteframe.models.checkpoints import checkpoint_source
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.teacher.load import load_teacher
from liteframe.models.vlm.attach import attach_encoder, processor_for
from liteframe.models.vlm.load import load_video_llm
from liteframe.reduce.pooled_teacher import PooledEncoder, PooledTeacher
from liteframe.toyworld.film_files import CHOICES, option_row, options_of
from liteframe.toyworld.films import FPS, LENGTHS, SCENE_SECONDS, SETTLED, TASKS, Film, film_words, questions_at
from liteframe.toyworld.language_pretrain import Packed, answer_loss
from liteframe.toyworld.model import PATCH, TOKENS_PER_FRAME, build_processor, build_tokenizer
from liteframe.toyworld.pretrain import normalized, optimize, rendered_videos, save_checkpoint
from liteframe.toyworld.scenes import FRAMES, SIZE, scene_for

HELD_OUT = 100  # scenes
SLOT = 4  # frames
SLOTS = FRAMES // SLOT  # of a scene
TOKENS = TOKENS_PER_FRAME // 4  # of a slot
STRIDES = (1, 1, 2, 4)  # every such slot is shown
SCENES = ((1, 2), (1, 2, 3, 4), (2, 3, 4), (2, 4, 8))  # of a film, in each quarter of the training
QUESTIONS = 24  # about a film, at one moment: they share its tokens, and a further one costs little
LETTERED = 4  # of these with options
ROUNDS = 4  # of questions of every task, from which they are drawn
# How films are encoded: the grid and the clips of `configs/ctd/toy.yaml`.
STUDENT = LiteFrameConfig(
    dim=64,
    depth=6,
    heads=2,
    patch_size=PATCH,
    image_size=SIZE,
    teacher_dim=128,
    downsample={1: (2, 2, 2), 2: (2, 1, 1)},
)


def load_film_model(folder: str | Path, encoder: str | Path | None = None) -> tuple[Any, Any]:
    """A model that answers about films, with its processor; for sessions of 8 frames a second, `labels="seconds"`.

    Args:
        folder: that `main` wrote.
        encoder: of a student of toyworld; None puts the teacher with WAP behind it in its place.
    """
    if encoder is not None:
        return load_video_llm(folder, encoder=encoder)
    vlm, processor = load_video_llm(folder)
    pooled = PooledEncoder(PooledTeacher(load_teacher(str(folder)), STUDENT.compression))
    model = attach_encoder(vlm, pooled, config=STUDENT)
    return model.eval(), processor_for(processor, model.config)


@torch.inference_mode()
def pooled_features(base: str, videos: np.ndarray, progress: Progress) -> Tensor:
    """What WAP makes of the teacher's features of scenes uint8 [V,T,H,W,3]: float16 [V,slots,h,w,C]."""
    teacher = load_teacher(base)
    pooled, looks = PooledTeacher(teacher, STUDENT.compression), (teacher.image_mean, teacher.image_std)
    rows = [
        pooled(normalized(video, *looks)[None]).tokens[0].half()
        for video in progress.track(videos, description="features")
    ]
    return torch.stack(rows)


class FilmPacker:
    """Draws films of stored scenes, and questions about them, and lays them out as token ids.

    Args:
        tokenizer: that knows the words of films.
        seed: of the world.
        numbers: of its scenes that are drawn from.
        draws: seed of what is drawn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int, numbers: range, draws: int) -> None:
        self.tokenizer, self.numbers = tokenizer, numbers
        self.scenes = [scene_for(seed, number) for number in numbers]
        self.rng = np.random.default_rng(draws)

    def draw(self, films: int, scenes: int, stride: int, start: int) -> tuple[Packed, Tensor, list[list[str]]]:
        """Films of so many scenes, each but for up to two seconds of the last, of which every `stride`th slot is shown.

        Returns:
            The layout; which slots it shows, as scene and slot, int64 [films,S,2]; and the task of each question.
        """
        rng, local = self.rng, int(self.rng.integers(SETTLED + 1, SCENE_SECONDS + 1))
        second = start + SCENE_SECONDS * (scenes - 1) + local
        chosen = np.stack([rng.permutation(len(self.scenes))[:scenes] for _ in range(films)])
        flashing = self._flashing(local)
        for row in chosen:
            if rng.random() < 0.5:
                row[-1] = rng.choice(flashing)  # else there would hardly ever be a star now
        slots = np.arange(int(rng.integers(stride)), (second - start) * FPS // SLOT, stride)
        shown = np.stack([chosen[:, slots // SLOTS], np.broadcast_to(slots % SLOTS, (films, len(slots)))], axis=-1)
        asked, tasks = [], []
        for row in chosen:
            film = Film(tuple(self.scenes[i] for i in row), start)
            questions = [question for _ in range(ROUNDS) for question in questions_at(film, second, rng)]
            questions = [questions[i] for i in rng.permutation(len(questions))]
            picked = []
            for question in [question for question in questions if question.task in CHOICES][:LETTERED]:
                options, right = options_of(question, rng)
                picked.append((f"{question.task}, letter", f"{question.text} {option_row(options)}", "ABCD"[right]))
            rest = questions[: QUESTIONS - LETTERED]
            picked += [(question.task, question.text, question.answer) for question in rest]
            asked.append([self._encode(text, answer) for _, text, answer in picked])
            tasks.append([task for task, _, _ in picked])
        length = max(len(ids) for row in asked for ids, _ in row)
        ids = np.full((films, QUESTIONS, length), self.tokenizer.pad_token_id, np.int64)
        labels = np.full_like(ids, -100)
        for b, row in enumerate(asked):
            for q, (tokens, answer) in enumerate(row):
                ids[b, q, : len(tokens)] = tokens
                labels[b, q, len(tokens) - answer : len(tokens)] = tokens[-answer:]
        nothing = torch.full((films, len(slots), 2, TOKENS // 2, 3), -100)  # no read-outs
        choice = torch.zeros(1, dtype=torch.long)
        prefix = self.prefix(slots * SLOT / FPS + start)
        shows = prefix == self.tokenizer.context_image_token_id
        positions = torch.arange(len(prefix)).expand(1, films, -1)
        packed = Packed(
            torch.from_numpy(slots), prefix.expand(films, -1), shows, positions, torch.from_numpy(ids),
            torch.from_numpy(labels), chosen, np.zeros((films, QUESTIONS), np.int64), nothing, (choice, choice, choice),
        )  # fmt: skip
        return packed, torch.from_numpy(shown), tasks

    def prefix(self, seconds: np.ndarray) -> Tensor:
        """Token ids of an opened user turn that shows slots that begin at these seconds."""
        image = "<img>" + "<IMG_CONTEXT>" * TOKENS + "</img>"
        last = (SLOT - 1) / FPS
        lines = "".join(f"{begin:.1f}-{begin + last:.1f} s: {image}\n" for begin in seconds.tolist())
        return torch.tensor(self.tokenizer(f"<|im_start|>user\n{lines}")["input_ids"])

    def _encode(self, text: str, answer: str) -> tuple[list[int], int]:
        asked = self.tokenizer(f"{text}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        answered = self.tokenizer(f"{answer}<|im_end|>")["input_ids"]
        return asked + answered, len(answered)

    def _flashing(self, local: int) -> list[int]:
        films = [Film((scene,)) for scene in self.scenes]
        return [i for i, film in enumerate(films) if film.flashes_now(local)] or list(range(len(films)))


def film_loss(
    model: InternVLForConditionalGeneration, features: Tensor, packed: Packed, shown: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean loss of the answers, and which questions are answered right, bool [films,questions].

    Args:
        model: its ViT is not run.
        features: of `pooled_features`.
        packed: of `FilmPacker.draw`.
        shown: the slots it shows.
    """
    patches = features[shown[..., 0], shown[..., 1]].float()  # [films,S,h,w,C]
    inner = model.model
    with torch.autocast("cpu", dtype=torch.bfloat16):
        blocks = inner.pixel_shuffle(patches.flatten(0, 1), scale_factor=0.5)  # [films*S,h/2,w/2,4C]
        tokens = inner.multi_modal_projector(blocks.flatten(1, 2)).unflatten(0, patches.shape[:2]).flatten(1, 2)
        loss, _, right = answer_loss(model, tokens, packed)
    return loss, right


@torch.inference_mode()
def held_out_accuracy(
    model: InternVLForConditionalGeneration, features: Tensor, packer: FilmPacker, scenes: int, films: int = 40
) -> dict[str, float]:
    """Accuracy by task on films of so many scenes, all of whose slots are shown."""
    right: dict[str, list[float]] = defaultdict(list)
    for _ in range(films // 4):
        packed, shown, tasks = packer.draw(4, scenes, 1, 0)
        _, good = film_loss(model, features, packed, shown)
        for row, names in zip(good.tolist(), tasks, strict=True):
            for one, task in zip(row, names, strict=True):
                right[task].append(one)
    order = [name for task in TASKS for name in (task, f"{task}, letter")]
    return {task: round(float(np.mean(right[task])), 3) for task in order if task in right}


CARD = """---
license: apache-2.0
library_name: transformers
---

The tiny InternVL of LiteFrame's toyworld, which has learned to answer about films, read as slots of 4 frames. Made by
`python -m liteframe.toyworld.film_pretrain`; its videos and weights share the license of the repository.
"""


def main(argv: list[str] | None = None) -> int:
    """Render scenes, train, save the checkpoint with its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write (an earlier one is replaced)")
    parser.add_argument(
        "--base", default="toyworld", help="checkpoint to start from; one that this wrote is trained on"
    )
    parser.add_argument("--scenes", type=int, default=700, help=f"scenes to render, the last {HELD_OUT} held out")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--films", type=int, default=1, help="films in a step")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=1, help="of the world and of what is drawn")
    args = parser.parse_args(argv)
    if args.scenes <= HELD_OUT:
        parser.error(f"--scenes must be more than the {HELD_OUT} held out, got {args.scenes}")
    torch.manual_seed(args.seed)
    began, base = time.monotonic(), str(checkpoint_source(args.base))
    tokenizer = build_tokenizer(film_words())
    model = InternVLForConditionalGeneration.from_pretrained(base)
    if model.config.text_config.vocab_size < len(tokenizer):
        model.resize_token_embeddings(len(tokenizer))
    known = range(args.scenes - HELD_OUT)
    held_out = range(args.scenes - HELD_OUT, args.scenes)
    with Progress() as progress:
        scenes = [scene_for(args.seed, number) for number in range(args.scenes)]
        features = pooled_features(base, rendered_videos(scenes, progress), progress)
        packer = FilmPacker(tokenizer, args.seed, known, args.seed)

        def step(i: int) -> tuple[Tensor, str]:
            count = int(packer.rng.choice(SCENES[len(SCENES) * i // args.steps]))
            start = int(packer.rng.integers(SCENE_SECONDS * (LENGTHS[-1] - count))) if packer.rng.random() < 0.7 else 0
            packed, shown, _ = packer.draw(args.films, count, int(packer.rng.choice(STRIDES)), start)
            loss, right = film_loss(model, features[: len(known)], packed, shown)
            return loss, f"loss {float(loss.detach()):.3f}, right {float(right.float().mean()):.3f}"

        parameters = [*model.model.multi_modal_projector.parameters(), *model.model.language_model.parameters()]
        optimize(parameters, args.steps, args.rate, step, progress, "films")
    model = model.eval().to(torch.bfloat16).float()  # the figures below are those of the weights that are stored
    packer = FilmPacker(tokenizer, args.seed, held_out, args.seed)
    record = {
        "command": " ".join(["python -m liteframe.toyworld.film_pretrain", *(sys.argv[1:] if argv is None else argv)]),
        "seconds": round(time.monotonic() - began),
        "CPU seconds": round(time.process_time()),
        "held-out accuracy by scenes and task": {
            str(count): held_out_accuracy(model, features[len(known) :], packer, count) for count in (1, 2, 4, 8)
        },
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    with replacing(args.out) as temporary:
        save_checkpoint(model, build_processor(tokenizer), temporary, CARD)
        write_json(temporary / "pretraining.json", record)
    print(json.dumps(record, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
