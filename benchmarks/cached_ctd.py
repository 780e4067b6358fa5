"""Live against cached training on toyworld: speed, waiting for data, what is learned, and bytes a frame.

python benchmarks/cached_ctd.py     # writes cached_ctd.{json,md} beside this file; eight minutes on one core

Every run is configs/ctd/toy.yaml with fewer steps, decoding in the training process's own turn (no workers), so that
a step's time is all of its work. The runs of a seed come one after the other, then those of the next seed. The caches
are those of seed 0, with as many views as a run has epochs: of seed 0, the live run and the cached ones see the same
clips.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from liteframe.cli.main import main as liteframe
from liteframe.distill.cache import TargetCache
from liteframe.distill.cache.verify import check_sample
from liteframe.distill.command import CTDCommand
from liteframe.files import write_atomically, write_json
from liteframe.toyworld.questions import ToyFolder, write_toyworld
from liteframe.training.report import environment

CONFIG = Path(__file__).parents[1] / "configs" / "ctd" / "toy.yaml"
LIVE = "live"


@dataclass(frozen=True)
class Setup:
    """How much to run."""

    videos: int = 48
    held_out: int = 24
    steps: int = 48
    warmup: int = 10
    batch: int = 8
    statistics_clips: int = 64
    seeds: tuple[int, ...] = (0, 1, 2)
    sample: int = 8

    @property
    def views(self) -> int:
        """Epochs that the steps see, the last one in part."""
        return -(-self.steps * self.batch // self.videos)


@dataclass(frozen=True)
class Stored:
    """One way to store targets; `frames` keeps JPEG frames beside them."""

    codec: str
    frames: bool = False

    @property
    def name(self) -> str:
        """As in the table."""
        return self.codec + (" and JPEG frames" if self.frames else "")


CACHES = (Stored("bf16"), Stored("bf16", frames=True), Stored("int8"))


def main(output: Path, work: Path, setup: Setup) -> None:
    """Build, train, write."""
    torch.set_num_threads(1)
    world = toyworld(work / "videos", setup)
    caches = {one.name: build(one, work / f"cache_{number}", world, setup) for number, one in enumerate(CACHES)}
    runs = []
    for seed in setup.seeds:
        for name in (LIVE, *caches):
            folder = work / f"{name.replace(' ', '_')}_{seed}"
            runs.append({"targets": name, "seed": seed, **train(folder, world, caches.get(name), setup, seed)})
    record = {
        "setup": {**asdict(setup), "views": setup.views},
        "caches": {name: {key: value for key, value in one.items() if key != "folder"} for name, one in caches.items()},
        "runs": runs,
        # The command names folders of the machine that it ran on.
        **{key: value for key, value in environment(torch.device("cpu")).items() if key != "command"},
    }
    write_json(output / "cached_ctd.json", record)
    write_atomically(output / "cached_ctd.md", as_markdown(record).encode())


def toyworld(folder: Path, setup: Setup) -> ToyFolder:
    """The rendered world; rendered once."""
    made = ToyFolder(folder / "train", folder / "train.jsonl", folder / "test", folder / "test.jsonl")
    return made if made.test_rows.is_file() else write_toyworld(folder, train=setup.videos, test=setup.held_out, seed=0)


def overrides(world: ToyFolder, setup: Setup) -> list[str]:
    """What every run and every cache has in common beside the configuration file."""
    return [
        f"--data.videos={world.train_videos}",
        f"--data.val_videos={world.test_videos}",
        f"--data.batch_size={setup.batch}",
        f"--model.target.statistics_clips={setup.statistics_clips}",
        "--data.workers=0",
        "--trainer.accelerator=cpu",
    ]


def build(stored: Stored, folder: Path, world: ToyFolder, setup: Setup) -> dict[str, Any]:
    """A cache, how long it took, its bytes a frame, and the quality of stored frames."""
    began = time.perf_counter()
    options = ["--views", str(setup.views), "--codec", stored.codec, *(["--frames", "jpeg"] if stored.frames else [])]
    code = liteframe(["cache", "build", "--config", str(CONFIG), "-o", str(folder), *options, *overrides(world, setup)])
    if code:
        raise ValueError(f"liteframe cache build failed with exit code {code}")
    seconds = time.perf_counter() - began
    cache = TargetCache.open(folder)
    clips = sum(shard.clips for shard in cache.index.shards.values())
    sample = check_sample(cache, setup.sample, 0, "cpu", lambda *_: None)
    if wrong := [one for one in sample if one.problem is not None]:
        raise ValueError(f"{folder}: {wrong[0].place}: {wrong[0].problem}")
    return {
        "folder": folder,
        "seconds": round(seconds, 2),
        "clips": clips,
        "bytes_a_frame": round(
            sum(shard.bytes for shard in cache.index.shards.values()) / clips / cache.settings.clip_frames, 1
        ),
        "psnr_db": [round(one.psnr, 2) for one in sample if one.psnr is not None],
    }


def train(run: Path, world: ToyFolder, cache: dict[str, Any] | None, setup: Setup, seed: int) -> dict[str, Any]:
    """One run; its speed and its held-out figures."""
    arguments = [
        "fit", f"--config={CONFIG}", f"--run={run}", f"--seed_everything={seed}", *overrides(world, setup),
        f"--trainer.max_steps={setup.steps}", f"--model.optimizer.warmup_steps={setup.warmup}",
    ]  # fmt: skip
    CTDCommand(arguments if cache is None else [*arguments, f"--data.cache={cache['folder']}"])
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    spent = report["time"]
    return {
        "steps_per_second": round(setup.steps / spent["train_seconds"], 4),
        "data_wait_share": spent["data_wait_share"],
        "token_cosine": report["figures"]["val/token_cosine"],
        "projected_cosine": report["figures"]["val/projected_cosine"],
    }


def as_markdown(record: dict[str, Any]) -> str:
    """Means over the seeds, ± their standard deviation."""
    setup, runs = record["setup"], record["runs"]
    seeds = ", ".join(map(str, setup["seeds"]))
    first = setup["seeds"][0]
    exact = {run["targets"]: run for run in runs if run["seed"] == first}
    lines = [
        "# CTD on toyworld from stored targets\n",
        f"{record['device']}, {record['threads']} thread, torch {record['versions']['torch']}, python "
        f"{record['python']}, {record['date'][:10]}. configs/ctd/toy.yaml on {setup['videos']} videos, "
        f"{setup['steps']} steps of {setup['batch']} clips, {setup['held_out']} held-out videos, {setup['views']} "
        f"views, seeds {seeds}; mean ± standard deviation over the seeds. Made by `python benchmarks/cached_ctd.py`.\n",
        'Without workers, decoding is in the step: that is "waiting for data". "Compute" is the step without that '
        "share, what is left where workers decode ahead in time. Bytes a frame count whole shards. The runs of seed "
        f"{first} see the same clips, so their difference is that of the stored targets.\n",
        "| targets | steps/s | times live | waiting for data | compute, times live | held-out cosine "
        f"| after the projector | cosine, seed {first} | bytes a frame |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    live = [run for run in runs if run["targets"] == LIVE]
    for name in (LIVE, *record["caches"]):
        own = [run for run in runs if run["targets"] == name]
        ratios = [run["steps_per_second"] / other["steps_per_second"] for run, other in zip(own, live, strict=True)]
        compute = [computed(run) / computed(other) for run, other in zip(own, live, strict=True)]
        stored = record["caches"].get(name)
        cells = [
            name, spread([run["steps_per_second"] for run in own], 2), spread(ratios, 2),
            f"{100 * statistics.mean(run['data_wait_share'] for run in own):.0f} %", spread(compute, 2),
            spread([run["token_cosine"] for run in own], 4), spread([run["projected_cosine"] for run in own], 4),
            f"{exact[name]['token_cosine']:.5f}", f"{stored['bytes_a_frame']:.0f}" if stored else "",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    quality = [value for one in record["caches"].values() for value in one["psnr_db"]]
    lines.append("")
    for name, one in record["caches"].items():
        lines.append(f"- {name}: built in {one['seconds']:.0f} s ({one['clips'] / one['seconds']:.1f} clips/s)")
    lines.append(
        f"- stored frames: {statistics.mean(quality):.1f} dB PSNR on average over {len(quality)} clips, "
        f"{min(quality):.1f} at least"
    )
    return "\n".join(lines) + "\n"


def computed(run: dict[str, Any]) -> float:
    """Steps a second without waiting for data."""
    return run["steps_per_second"] / max(1e-9, 1 - run["data_wait_share"])


def spread(values: Iterable[float], digits: int) -> str:
    """Mean ± standard deviation."""
    values = list(values)
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def read_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/cached_ctd"), help="new folder for videos and runs")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent)
    return parser.parse_args(argv)


if __name__ == "__main__":
    arguments = read_arguments()
    main(arguments.output, arguments.work.resolve(), Setup())
