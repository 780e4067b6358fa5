"""What LMA is worth on toyworld: CTD against CTD + LMA, LoRA ranks, a frozen against a trained projector, by seed.

python benchmarks/lma_ablation.py [--videos 600] [--ctd-steps 850] [--lma-steps 200] [--seeds 0 1 2]

Writes benchmarks/lma_ablation.{json,md}. A seed stands for order, augmentation and random weights of both runs; the
world and the questions are the same for all. Runs that are already in --work are not repeated.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from liteframe.bench.timing import machine
from liteframe.demo.demo import train
from liteframe.demo.report import CTD, LMA
from liteframe.demo.systems import BENCHMARK, answer_questions, build, score
from liteframe.files import write_atomically, write_json
from liteframe.toyworld.questions import ToyFolder, write_toyworld

FRAMES = 64
TYPES = ("colour", "shape", "direction", "order", "event")


@dataclass(frozen=True)
class Variant:
    """One way to align; rank None is CTD alone."""

    rank: int | None
    train_projector: bool = False

    @property
    def name(self) -> str:
        """As in the table."""
        if self.rank is None:
            return "CTD"
        return f"CTD + LMA, rank {self.rank}, projector {'trained' if self.train_projector else 'frozen'}"

    def arguments(self) -> list[str]:
        """Options of train_lma.py; alpha is twice the rank, as in the paper."""
        options = [f"--model.lora.rank={self.rank}", f"--model.lora.alpha={2 * (self.rank or 0)}"]
        if self.train_projector:  # then features change and cannot be kept
            options += ["--model.train_projector=true", "--data.cache_features=false"]
        return options


VARIANTS = (Variant(None), Variant(4), Variant(8), Variant(16), Variant(16, train_projector=True))


def main(argv: Sequence[str] | None = None) -> None:
    """Train, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=600, help="training videos (600)")
    parser.add_argument("--test-videos", type=int, default=120, help="held-out videos, five questions each (120)")
    parser.add_argument("--ctd-steps", type=int, default=850)
    parser.add_argument("--lma-steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/lma_ablation"), help="folder for videos and runs")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks"))
    args = parser.parse_args(argv)
    folder = args.work.resolve()
    world = toyworld(folder / "videos", args.videos, args.test_videos)
    questions = BENCHMARK.load(world.test_rows).questions
    scores: dict[str, list[dict[str, Any]]] = {variant.name: [] for variant in VARIANTS}
    for seed in args.seeds:
        encoder = distil(folder / f"ctd_{seed}", world, args.ctd_steps, seed)
        for variant in VARIANTS:
            adapter = None
            if variant.rank is not None:
                run = folder / f"lma_{seed}_r{variant.rank}{'_projector' if variant.train_projector else ''}"
                adapter = align(run, world, encoder, variant, args.lma_steps, seed)
            torch.manual_seed(0)
            model, processor = build(LMA if adapter else CTD, encoder, adapter or encoder)
            results = answer_questions(model, processor, questions, FRAMES)
            scores[variant.name].append({"seed": seed, **score(results).to_dict()})
            print(f"seed {seed}, {variant.name}: {100 * scores[variant.name][-1]['accuracy']:.1f} %", flush=True)
    settings = {key: getattr(args, key) for key in ("videos", "test_videos", "ctd_steps", "lma_steps", "seeds")}
    record = {"machine": machine(torch.device("cpu")), "frames": FRAMES, "settings": settings, "scores": scores}
    write_json(args.output / "lma_ablation.json", record)
    write_atomically(args.output / "lma_ablation.md", as_markdown(record).encode())


def toyworld(folder: Path, train_videos: int, test_videos: int) -> ToyFolder:
    """The rendered world; rendered once."""
    made = ToyFolder(folder / "train", folder / "train.jsonl", folder / "test", folder / "test.jsonl")
    return made if made.test_rows.is_file() else write_toyworld(folder, train=train_videos, test=test_videos, seed=0)


def distil(run: Path, world: ToyFolder, steps: int, seed: int) -> Path:
    """CTD as in configs/ctd/toy.yaml; the encoder's folder."""
    if not (run / "report.json").is_file():
        train(
            "distill", "--config=toy", f"--data.videos={world.train_videos}", f"--run={run}",
            f"--trainer.max_steps={steps}", f"--seed_everything={seed}",
        )  # fmt: skip
    return run / "encoder"


def align(run: Path, world: ToyFolder, encoder: Path, variant: Variant, steps: int, seed: int) -> Path:
    """LMA as in configs/lma/toy.yaml but for the variant; the adapter's folder."""
    if not (run / "report.json").is_file():
        train(
            "align", "--config=toy", f"--model.encoder={encoder}",
            f"--data.conversations={world.train_rows}", f"--run={run}", f"--trainer.max_steps={steps}",
            f"--seed_everything={seed}", *variant.arguments(),
        )  # fmt: skip
    return run / "adapter"


def as_markdown(record: dict[str, Any]) -> str:
    """Mean over the seeds ± their standard deviation, in per cent."""
    settings, where = record["settings"], record["machine"]
    lines = [
        "# LMA on toyworld\n",
        f"{where['device']}, torch {where['torch']}, python {where['python']}, {where['date']}; "
        f"{settings['videos']} training videos, {settings['ctd_steps']} CTD and {settings['lma_steps']} LMA steps, "
        f"{5 * settings['test_videos']} questions about {settings['test_videos']} held-out videos, "
        f"{record['frames']} frames, seeds {', '.join(map(str, settings['seeds']))}. Made by "
        "`python benchmarks/lma_ablation.py`; accuracy in %, mean over the seeds ± their standard deviation.\n",
        f"| system | accuracy | {' | '.join(TYPES)} |",
        "|---|---|" + "---|" * len(TYPES),
    ]
    for name, runs in record["scores"].items():
        whole = [100 * run["accuracy"] for run in runs]
        spread = f" ± {statistics.stdev(whole):.1f}" if len(whole) > 1 else ""
        kinds = [statistics.mean(100 * run["types"][kind]["accuracy"] for run in runs) for kind in TYPES]
        cells = [name, f"{statistics.mean(whole):.1f}{spread}", *(f"{value:.0f}" for value in kinds)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
