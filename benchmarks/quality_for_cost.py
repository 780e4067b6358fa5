"""Steps and CPU time to a held-out cosine on toyworld: AdamW and Muon, live and cached, views, batch, start, clips.

python benchmarks/quality_for_cost.py [--minutes N] [--only GROUP]     # one thread; two hours of one core for all

Every run is configs/ctd/toy.yaml through `liteframe distill`, with the optimizer, the steps and the source of targets
of its row. Both optimizers are given the same number of learning rates, tried on the first seed and chosen by the
held-out cosine at the end; all further runs take what was chosen. Runs come in the order of their value. A finished run
is a line of WORK/runs.jsonl, and the same command goes on behind it; one that was stopped goes on, too. A new WORK
begins with the runs of quality_for_cost.json, whatever machine they were made on: CPU times of several processors are
kept apart. After each run quality_for_cost.{json,md,png} beside this file are written anew from them, and at the end a
part of docs/cost.md.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from quality_for_cost_plan import FIRST, GROUPS, Run, Setup, plan
from quality_for_cost_report import name_of, write, write_page

from liteframe.cli.main import main as liteframe
from liteframe.distill.cache import TargetCache
from liteframe.distill.cache.settings import STATISTICS
from liteframe.distill.command import CTDCommand
from liteframe.files import write_atomically, write_json
from liteframe.journal import Journal
from liteframe.machine import processor_name
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.texts import read_json
from liteframe.toyworld.questions import ToyFolder, write_toyworld
from liteframe.training.cache.build import write_index
from liteframe.training.cache.reader import SETTINGS
from liteframe.training.cache.settings import all_shards
from liteframe.training.report import environment

CONFIG = Path(__file__).parents[1] / "configs" / "ctd" / "toy.yaml"


class TimeUpError(Exception):
    """The time that the command was given is over."""


class Curve(Callback):
    """CPU seconds of the training steps, and the held-out cosine at each validation.

    The clock stands still in validation, with all that is saved and drawn there. It is the process's own: what a
    process that decodes takes is not in it.

    Args:
        deadline: of time.monotonic; a run that is still going then is ended by TimeUpError.
        kept: where the points are written as they come.
        points: those of a run that goes on.
    """

    def __init__(self, deadline: float, kept: Path, points: list[dict[str, float]]):
        self.deadline, self.kept, self.points, self.spent, self._began = deadline, kept, points, 0.0, 0.0

    def state_dict(self) -> dict[str, float]:
        """For checkpoints, which are written while the clock goes."""
        return {"spent": self.spent + time.process_time() - self._began}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """What the steps before a checkpoint have taken."""
        self.spent = state["spent"]

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """The clock starts."""
        self._began = time.process_time()
        self.points = [point for point in self.points if point["step"] <= trainer.global_step]

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop in time."""
        if time.monotonic() > self.deadline:
            raise TimeUpError

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """The clock stops."""
        if trainer.state.fn == TrainerFn.FITTING:
            self.spent += time.process_time() - self._began

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Keep the figures of this step; the clock goes on."""
        if trainer.state.fn == TrainerFn.FITTING:
            cosine = float(trainer.callback_metrics["val/token_cosine"])
            self.points.append({"step": trainer.global_step, "cpu": round(self.spent, 2), "cosine": cosine})
            write_json(self.kept, {"curve": self.points})
            self._began = time.process_time()


class MeasuredCTD(CTDCommand):
    """`liteframe distill` with a curve."""

    def __init__(self, arguments: list[str], curve: Curve):
        self.curve = curve
        super().__init__(arguments)

    def run_callbacks(self) -> list[Callback]:
        """The command's own, and the curve."""
        return [*super().run_callbacks(), self.curve]


class Bench:
    """Videos, caches and runs in one folder.

    Args:
        work: the folder.
        setup: how much to run.
        deadline: of time.monotonic.
        recorded: the record of earlier runs, with which a new folder begins; it need not be there.

    Raises:
        ValueError: the folder or the record holds runs of another setup.
    """

    def __init__(self, work: Path, setup: Setup, deadline: float, recorded: Path | None = None):
        self.work, self.setup, self.deadline = work, setup, deadline
        work.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(work / "runs.jsonl")
        rows = [row for _, row in self.journal.rows()]
        self.head: dict[str, Any] = {"setup": plain(asdict(setup)), "config": fixed(CONFIG.read_text(encoding="utf-8"))}
        if not rows:
            rows = [self.head, *(taken_over(recorded, self.head) if recorded and recorded.is_file() else [])]
            for row in rows:
                self.journal.append(row)
        elif rows[0] != self.head:
            raise ValueError(f"{work} holds runs of another setup or another toy.yaml; name another folder (--work)")
        self.built = [row["built"] for row in rows if "built" in row]  # by others: not in this folder
        self.caches = {row["cache"]: row for row in rows if "cache" in row}
        self.runs = [row for row in rows if "run" in row]
        folder = work / "videos"
        self.world = ToyFolder(folder / "train", folder / "train.jsonl", folder / "test", folder / "test.jsonl")
        if not self.world.test_rows.is_file():
            write_toyworld(folder, train=setup.videos, test=setup.held_out, seed=0)

    def finished(self, run: Run) -> dict[str, Any] | None:
        """The row of a run, if it is finished."""
        return next((row for row in self.runs if row["run"] == asdict(run)), None)

    def options(self, first: str | None) -> list[str]:
        """What runs and caches have in common beside the configuration file."""
        return [
            f"--config={CONFIG}", f"--data.videos={self.world.train_videos}",
            f"--data.val_videos={self.world.test_videos}", f"--data.batch_size={self.setup.batch}",
            f"--model.target.statistics_clips={self.setup.statistics_clips}", "--data.workers=0",
            "--trainer.accelerator=cpu", *([FIRST[first]] if first else []),
        ]  # fmt: skip

    def cache(self, views: int, first: str | None) -> Path:
        """The folder of a cache; built, or made of the shards of the largest one, if it is not there."""
        name = f"cache_{views}" + (f"_{first.replace(' ', '_')}" if first else "")
        folder, whole = self.work / name, self.setup.views
        if name in self.caches:
            return folder
        if first is None and views < whole:
            fewer_views(self.cache(whole, None), views, folder)
            return folder
        began = time.process_time()
        words = ["cache", "build", "-o", str(folder), "--views", str(views), "--codec", "int8", "--frames", "jpeg"]
        if code := liteframe([*words, *self.options(first)]):
            raise ValueError(f"liteframe cache build failed with exit code {code}")
        seconds = round(time.process_time() - began, 1)
        where = {"processor": processor_name()}
        self.caches[name] = {"cache": name, "views": views, "first": first, "cpu_seconds": seconds, **where}
        self.journal.append(self.caches[name])
        return folder

    def train(self, run: Run) -> None:
        """Do a run and keep its row.

        Raises:
            TimeUpError: there is no time for it.
        """
        folder, points, wall = self.work / "run", list[dict[str, float]](), 0.0
        for part in ([run.first] if run.first else []) + [None]:
            marker, kept = (folder.with_name(name) for name in ("run_under_way.json", "curve_under_way.json"))
            goes_on = not run.first and marker.is_file() and read_json(marker) == asdict(run)
            if not goes_on:
                shutil.rmtree(folder, ignore_errors=True)
                write_json(kept, {"curve": []})
                write_json(marker, asdict(run))
            words = [*self.words(run, part), "--resume=auto"]  # which makes the cache that is missing
            if part is None and run.first:
                words.append(f"--init_from={self.work / 'first_half'}")
            curve, began = Curve(self.deadline, kept, read_json(kept)["curve"]), time.monotonic()
            MeasuredCTD(["fit", *words, f"--run={folder}"], curve)
            wall += time.monotonic() - began
            before = points[-1] if points else {"step": 0, "cpu": 0.0}
            moved = [{**p, "step": p["step"] + before["step"], "cpu": p["cpu"] + before["cpu"]} for p in curve.points]
            if part is None:
                points = moved
            else:  # its cosines are of other clips
                points = [moved[-1]]
                keep_encoder(folder / "encoder", self.work / "first_half")
        row = {"run": asdict(run), "curve": points, "processor": processor_name(), "wall_seconds": round(wall, 1)}
        self.journal.append({**row, "date": environment(torch.device("cpu"))["date"]})
        self.journal.sync()
        self.runs.append(row)

    def words(self, run: Run, part: str | None) -> list[str]:
        """Options of a run, or of its first half."""
        steps = run.steps // 2 if run.first else run.steps
        every = steps if part else min(max(self.setup.every, steps // 12), steps)
        muon = run.kind == "muon"
        words = [
            *self.options(part), f"--data.batch_size={run.batch}", f"--seed_everything={run.seed}",
            f"--model.init={run.init}", f"--model.optimizer.kind={run.kind}",
            f"--model.optimizer.lr={self.setup.beside_muon if muon else run.rate}",
            f"--model.optimizer.muon_lr={run.rate if muon else 'null'}",
            f"--model.optimizer.split_qkv={run.split_qkv}",
            f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={every}",
            f"--checkpoint.every_n_steps={10 * steps}", f"--panel.every_n_steps={10 * steps}",
        ]  # fmt: skip
        # Half of the steps need no more views than they see.
        views = min(run.views, -(-steps * run.batch // self.setup.videos)) if part else run.views
        return [*words, f"--data.cache={self.cache(views, part)}"] if views else words

    def lasts(self, run: Run) -> float:
        """Seconds that a run will take, after the slowest like it in this folder; 0 where there was none."""
        like = [row for row in self.runs if "wall_seconds" in row and bool(row["run"]["views"]) == bool(run.views)]
        return max((row["wall_seconds"] / clips(row["run"]) * clips(asdict(run)) for row in like), default=0.0)

    def record(self) -> dict[str, Any]:
        """Everything that was measured."""
        where = {key: value for key, value in environment(torch.device("cpu")).items() if key != "command"}
        runs = [{name: row[name] for name in ("run", "curve", "processor")} for row in self.runs]
        return {**where, **self.head, "caches": [*self.built, *self.caches.values()], "runs": runs}


def fixed(config: str) -> dict[str, Any]:
    """What all runs have in common of a configuration file: without what each run says itself."""
    values: dict[str, Any] = yaml.safe_load(config)
    for name in ("kind", "lr", "muon_lr"):
        values["model"]["optimizer"].pop(name, None)
    return {key: plain(value) for key, value in values.items()}


def taken_over(path: Path, head: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of a journal for the runs of a record.

    Raises:
        ValueError: they are of another setup.
    """
    record = read_json(path)
    if {name: record[name] for name in head} != head:
        raise ValueError(f"{path} holds runs of another setup or another toy.yaml; name another folder (--output)")
    yield from ({"built": row} for row in record["caches"])
    yield from record["runs"]


def clips(run: dict[str, Any]) -> int:
    """Clips that a run learns from."""
    return run["steps"] * run["batch"]


def plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def fewer_views(whole: Path, views: int, folder: Path) -> None:
    """A cache of the first views of another: the same shards, and an index of them."""
    settings = replace(TargetCache.open(whole).settings, views=views)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write_atomically(folder / SETTINGS, settings.to_json().encode())
    shutil.copy(whole / STATISTICS, folder / STATISTICS)
    for key in all_shards(settings):
        os.link(whole / f"{key.name}.safetensors", folder / f"{key.name}.safetensors")
    write_index(folder, settings)


def keep_encoder(folder: Path, kept: Path) -> None:
    """Save an encoder of short clips as one of whole clips, which has the same weights."""
    encoder = LiteFrameEncoder.from_pretrained(folder)
    encoder.config = replace(encoder.config, clip_frames=16)
    encoder.save_pretrained(kept)


def main(work: Path, output: Path, setup: Setup, minutes: float | None = None, only: str | None = None) -> None:
    """Run what is missing, in order, as long as there is time, and write what is there after each run."""
    torch.set_num_threads(1)
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    bench, left = Bench(work, setup, deadline, output / "quality_for_cost.json"), 0
    for group, run in plan(setup, bench.finished):
        if bench.finished(run) or only not in (None, group):
            continue
        if time.monotonic() + bench.lasts(run) > deadline:
            left += 1
            continue
        print(f"{group}: {name_of(asdict(run))}, seed {run.seed}", file=sys.stderr, flush=True)
        try:
            bench.train(run)
        except TimeUpError:
            left += 1
        write(bench.record(), output)
    write(bench.record(), output)
    bench.journal.close()
    if left:
        print(f"{left} runs or more are left; the same command goes on", file=sys.stderr)


def read_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="stop in time; the same command goes on")
    parser.add_argument("--only", choices=GROUPS, help="runs of this kind alone; those of `rates` come first")
    parser.add_argument("--work", type=Path, default=Path("runs/quality_for_cost"), help="videos, caches and runs")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent)
    return parser.parse_args(argv)


if __name__ == "__main__":
    given = read_arguments()
    main(given.work.resolve(), given.output, Setup(), given.minutes, given.only)
    if given.output.resolve() == Path(__file__).parent.resolve():
        write_page()
