"""Training runs that are killed at random moments and resumed, compared with one that was not.

Runs are forked from this process, which has imported everything already; what is killed is a real process of training,
with its decoder and its workers.
"""

import itertools
import json
import os
import random
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from liteframe.distill.command import CTDCommand
from liteframe.toyworld.scenes import render, scene_for, write_video
from liteframe.training.checkpoint_folder import AtomicCheckpointIO, CheckpointFolder
from liteframe.training.exit_codes import exit_codes

ROOT = Path(__file__).resolve().parents[1]
VIDEOS, STEPS = 7, 20
REACH = 5
PATIENCE = 300.0
CONFIG = """
seed_everything: 1
run: overridden
model:
  teacher: {{name: "{root}/liteframe/toyworld/checkpoint"}}
  student: {{dim: 16, depth: 2, heads: 2, mlp_dim: 32, patch_size: 8, image_size: 64, teacher_dim: 128,
            downsample: {{1: [2, 2, 2], 2: [2, 1, 1]}}, clip_frames: 8}}
  target: {{statistics_clips: 8}}
  optimizer: {{lr: 1.0e-3, warmup_steps: 2}}
data: {{videos: "{videos}", batch_size: 4, micro_batch_size: 2, min_fps: 4, val_fraction: 0.3}}
trainer: {{max_steps: {steps}, val_check_interval: 20, accelerator: cpu, log_every_n_steps: 1}}
checkpoint: {{every_n_steps: 3}}
"""


@dataclass(frozen=True)
class Setting:
    """How a run is spread: decoding workers of each process, and processes."""

    workers: int
    processes: int


class Recorder(Callback):
    """Appends what each process is about to learn from: one line a batch."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """One write in append mode is whole or absent."""
        line = {
            "process": os.environ["SURVIVAL_TURN"], "rank": trainer.global_rank, "step": trainer.global_step,
            "clips": [list(key) for key in batch.keys], "pixels": batch.video.double().sum().item(),
        }  # fmt: skip
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


class RecordedCommand(CTDCommand):
    """train_ctd.py with a recorder."""

    def run_callbacks(self) -> list[Callback]:
        """Also the recorder."""
        run = Path(self._get(self.config_init, "run"))
        return [*super().run_callbacks(), Recorder(run.with_suffix(".jsonl"))]


def write_world(folder: Path) -> Path:
    """Write the videos and the configuration; returns the configuration."""
    (folder / "videos").mkdir(parents=True)
    for index in range(VIDEOS):
        write_video(folder / "videos" / f"{index}.mp4", render(scene_for(5, index)))
    config = folder / "run.yaml"
    config.write_text(CONFIG.format(root=ROOT, videos=folder / "videos", steps=STEPS))
    return config


class Run:
    """One run in its folder, over as many lives as it takes."""

    def __init__(self, config: Path, folder: Path, setting: Setting):
        self.config, self.folder, self.setting = config, folder, setting
        self.record = folder.with_suffix(".jsonl")
        self.record.touch()
        self.lives = 0
        self.start_seconds = self.step_seconds = 0.0

    def start(self) -> list[int]:
        """Fork the processes of the run, which starts or continues; returns their ids."""
        self.lives += 1
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        return [self._fork(rank, port) for rank in range(self.setting.processes)]

    def _fork(self, rank: int, port: int) -> int:
        if child := os.fork():
            return child
        os.setsid()
        os.environ.update(SURVIVAL_TURN=str(self.lives))
        if self.setting.processes > 1:
            os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        log = os.open(self.folder.with_suffix(f".{rank}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        arguments = [
            "fit", "--config", str(self.config), "--run", str(self.folder), "--resume", "auto",
            "--data.workers", str(self.setting.workers), "--trainer.devices", str(self.setting.processes),
        ]  # fmt: skip
        if self.setting.processes > 1:
            arguments += ["--trainer.strategy", "ddp"]
        code: Any = 1
        try:
            with exit_codes("survival"):
                RecordedCommand(arguments)
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
            print(error, file=sys.stderr)
        finally:
            if code:
                sys.excepthook(*sys.exc_info()) if sys.exc_info()[0] else None  # type: ignore[arg-type]
            sys.stderr.flush()
            os._exit(code)

    def steps(self) -> int:
        """The step that this life is at, or -1 before its first."""
        lines = [line for line in self.lines() if line["process"] == str(self.lives)]
        return max((line["step"] for line in lines), default=-1)

    def lines(self) -> list[dict[str, Any]]:
        """Everything recorded."""
        return [json.loads(line) for line in self.record.read_text().splitlines()]

    def committed(self) -> list[list[Any]]:
        """What the final weights have learned from, in order, for each rank.

        A life is undone from the step on at which the next one that got to training starts.
        """
        order = []
        for rank in range(self.setting.processes):
            mine = [line for line in self.lines() if line["rank"] == rank]
            lives = [list(group) for _, group in itertools.groupby(mine, key=lambda line: line["process"])]
            ends = [life[0]["step"] for life in lives[1:]] + [STEPS]
            order.append(
                [(line["step"], line["clips"], line["pixels"]) for life, end in zip(lives, ends, strict=True)
                 for line in life if line["step"] < end]
            )  # fmt: skip
        return order

    def state(self) -> dict[str, Any]:
        """The final checkpoint, without what depends on time."""
        path, notes = CheckpointFolder(self.folder / "checkpoints").find_whole()
        assert path is not None
        assert not notes, notes
        found = AtomicCheckpointIO().load_checkpoint(path)
        return {key: found[key] for key in ("global_step", "state_dict", "optimizer_states", "lr_schedulers", "rng")}


def wait(children: list[int], until: float = PATIENCE) -> list[int]:
    """Exit codes of the processes, which are killed when they take too long."""
    deadline, codes = time.monotonic() + until, {}
    while len(codes) < len(children):
        for child in children:
            if child not in codes and (found := os.waitpid(child, os.WNOHANG))[0]:
                codes[child] = os.waitstatus_to_exitcode(found[1])
        if time.monotonic() > deadline:
            for child in set(children) - set(codes):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[child] for child in children]


def finish(run: Run) -> None:
    """Let the run go to its end, and note how long its start and its steps take.

    Raises:
        RuntimeError: it failed; the message ends with its log.
    """
    began, children = time.monotonic(), run.start()
    while run.steps() < 0 and time.monotonic() < began + PATIENCE:
        time.sleep(0.01)
    started = time.monotonic()
    codes = wait(children)
    run.start_seconds, run.step_seconds = started - began, (time.monotonic() - started) / STEPS
    if any(codes):
        logs = "\n".join(run.folder.with_suffix(f".{rank}.log").read_text()[-3000:] for rank in range(len(codes)))
        raise RuntimeError(f"a run ended with {codes}:\n{logs}")


def kill_once(run: Run, rng: random.Random, whole: Run) -> str | None:
    """Start or continue the run and kill it at a random moment; says when, or None if it ended before.

    A fifth of the kills falls between the start and the first step, the others fall in the next steps, with
    their validations and saves.
    """
    named = CheckpointFolder(run.folder / "checkpoints").named()
    done = named[0].step if named else 0
    early, one_rank = rng.random() < 0.2, run.setting.processes > 1 and rng.random() < 0.5
    target, part = rng.randint(done, min(done + REACH, STEPS - 1)), rng.random()
    children = run.start()
    began = time.monotonic()
    while not early and run.steps() < target and time.monotonic() < began + PATIENCE:
        if os.waitid(os.P_PID, children[0], os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(0.005)
    time.sleep(part * (whole.start_seconds if early else 1.5 * whole.step_seconds))
    victims = [rng.choice(children)] if one_rank else children
    for child in victims:
        os.kill(child, signal.SIGKILL)
    # Without the other rank a process ends by itself, or its launcher ends it.
    codes = wait(children, until=20.0 if one_rank else PATIENCE)
    if -signal.SIGKILL not in codes:
        return None
    who = f"{len(victims)} of {len(children)} processes"
    return f"{who}, {'before its first step' if run.steps() < 0 else f'at step {run.steps()}'}"


def compare(run: Run, whole: Run) -> list[str]:
    """What differs between a killed run and a whole one; nothing, if it survives."""
    differences = []
    if run.committed() != whole.committed():
        differences.append("samples")
    mine, theirs = run.state(), whole.state()
    differences += [key for key in mine if not same(mine[key], theirs[key])]
    return differences


def same(one: Any, other: Any) -> bool:
    """Equality of nested containers, bit for bit in tensors."""
    if isinstance(one, torch.Tensor):
        if one.dtype.is_floating_point:  # NaN equals NaN
            one, other = (tensor.reshape(-1).view(torch.uint8) for tensor in (one, other))
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
