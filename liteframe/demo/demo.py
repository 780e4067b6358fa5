"""The demo: render, distil, align, evaluate, export, reload, ask, through the commands that a user would type."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from liteframe_export.hf_encoder import export_encoder
from liteframe_export.hf_vlm import export_vlm
from liteframe_export.provenance import parts_of_run
from liteframe_export.reload_child import ask
from liteframe_export.verify import difference, reload
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import liteframe
from liteframe.demo.report import CTD, LMA, POOLED, TEACHER, UNTRAINED, SystemResult, as_markdown, as_table, plot
from liteframe.demo.systems import BENCHMARK, build, evaluate, read_evenly
from liteframe.evaluate.benchmarks.base import Question, Result
from liteframe.files import write_json
from liteframe.toyworld.questions import CHANCE, write_toyworld

REPOSITORY = Path(liteframe.__file__).parents[1]
FRAMES = {TEACHER: (4, 8, 16, 32), POOLED: (32, 64), UNTRAINED: (64,), CTD: (32, 64), LMA: (32, 64)}


@dataclass(frozen=True)
class Settings:
    """How many videos a demo renders and how long it trains."""

    train_videos: int
    test_videos: int
    ctd_steps: int
    lma_steps: int
    timing_runs: int


QUICK = Settings(train_videos=600, test_videos=60, ctd_steps=850, lma_steps=160, timing_runs=20)
FULL = Settings(train_videos=2000, test_videos=120, ctd_steps=2600, lma_steps=1000, timing_runs=100)


class Stopwatch:
    """Announces the stages and remembers how long each took."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage by its number and keep the seconds that the body takes."""
        self.console.rule(f"[bold]{len(self.seconds) + 1}. {name}")
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)


def processor_name() -> str:
    """What Linux calls the processor; elsewhere what Python knows of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")


def prepare_folder(folder: Path) -> None:
    """An empty folder for the demo; an earlier demo's is replaced, anything else is refused.

    Raises:
        ValueError: the folder holds something that no demo wrote.
    """
    if folder.exists():
        if not folder.is_dir():
            raise ValueError(f"--run {folder} is a file; name a folder")
        if any(folder.iterdir()) and not (folder / "demo.json").is_file():
            raise ValueError(f"--run {folder} holds something else than a demo; choose another folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def train(script: str, *arguments: str) -> None:
    """Run one of the training commands as a user would, on the CPU: what it trained is asked and timed there.

    Raises:
        ValueError: it is not there, or it failed.
    """
    if not (REPOSITORY / script).is_file():
        raise ValueError(
            f"the demo runs {script} of the repository, which is not in {REPOSITORY}; run it in a checkout"
        )
    # A world so small would be timed by what it costs to start kernels, and one table has one device.
    command = [sys.executable, script, "fit", *arguments, "--trainer.accelerator=cpu"]
    print("$ python", *command[1:], flush=True)
    code = subprocess.run(command, cwd=REPOSITORY, check=False).returncode
    if code:
        raise ValueError(f"{script} failed with exit code {code}; its messages stand above")


def compare_systems(
    questions: Sequence[Question], encoder: Path, adapter: Path, runs: int, console: Console
) -> tuple[list[SystemResult], dict[str, list[Result]]]:
    """Score and time every system; also the answers by system and frames."""
    table, answers = [], {}
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        for system, counts in FRAMES.items():
            built = build(system, encoder, adapter)
            for frames in counts:
                task = progress.add_task(f"{system}, {frames} frames", total=len(questions))
                row, results = evaluate(
                    system,
                    built,
                    questions,
                    frames=frames,
                    runs=runs,
                    progress=lambda n, task=task: progress.update(task, advance=n),  # type: ignore[misc]
                )
                table.append(row)
                answers[f"{system}, {frames} frames"] = results
    return table, answers


def check_export(
    questions: Sequence[Question], encoder: Path, adapter: Path, exported: Path, frames: int
) -> dict[str, Any]:
    """Ask every held-out question of the model before export and of the export in a process without liteframe.

    Raises:
        ValueError: logits differ by more than the export's tolerance.
    """
    clips = read_evenly([question.video for question in questions], frames)
    videos = [clips[question.video] for question in questions]
    texts = [question.text for question in questions]
    model, processor = build(LMA, encoder, adapter)
    before = ask(model, processor, videos, texts, 3)
    tensors = [torch.from_numpy(video).clone() for video in videos]  # the file wants each its own memory
    after = reload(exported, "vlm", tensors, questions=texts, new_tokens=3)
    same = (before["answers"] == after.outputs["answers"]).all(-1)
    return {
        "questions": len(questions),
        "same answers": int(same.sum()),
        "largest logit difference": difference("logits", before["logits"], after.outputs["logits"]),
        "reloaded with": after.environment,
    }


def run_demo(folder: Path, settings: Settings, seed: int, console: Console) -> dict[str, Any]:
    """The whole road; returns what report.json holds."""
    prepare_folder(folder)
    folder = folder.resolve()
    started = {"settings": asdict(settings), "seed": seed, "date": date.today().isoformat()}
    write_json(folder / "demo.json", started)
    watch = Stopwatch(console)
    with watch.stage("Render a small world of H.264 videos"), Progress(console=console) as progress:
        task = progress.add_task("videos", total=settings.train_videos + settings.test_videos)
        world = write_toyworld(
            folder / "videos",
            train=settings.train_videos,
            test=settings.test_videos,
            seed=seed,
            progress=lambda n: progress.update(task, advance=n),
        )
    with watch.stage("Distil: CTD, a student learns the teacher's pooled tokens"):
        train(
            "train_ctd.py",
            "--config=configs/ctd/toy.yaml",
            f"--data.videos={world.train_videos}",
            f"--run={folder / 'ctd'}",
            f"--trainer.max_steps={settings.ctd_steps}",
            f"--seed_everything={seed}",
        )
    questions = BENCHMARK.load(world.test_rows).questions
    encoder = folder / "ctd" / "encoder"
    with watch.stage("Align: LMA, LoRA teaches the language model to read the student"):
        train(
            "train_lma.py",
            "--config=configs/lma/toy.yaml",
            f"--model.encoder={encoder}",
            f"--data.conversations={world.train_rows}",
            f"--run={folder / 'lma'}",
            f"--trainer.max_steps={settings.lma_steps}",
            f"--seed_everything={seed}",
        )
    adapter = folder / "lma" / "adapter"
    with watch.stage("Evaluate on videos that nobody has seen"):
        results, answers = compare_systems(questions, encoder, adapter, settings.timing_runs, console)
    with watch.stage("Export, and reload where liteframe is not installed"):
        export_encoder(encoder, folder / "hf-encoder")
        export_vlm(parts_of_run(folder / "lma"), folder / "hf-vlm")
        parity = check_export(questions, encoder, adapter, folder / "hf-vlm", max(FRAMES[LMA]))
        console.print(
            f"{parity['same answers']} of {parity['questions']} answers are the same after export, "
            f"logits differ by at most {parity['largest logit difference']:.1e}"
        )
    report = {
        **started,
        "command": "liteframe demo" + (" --full" if settings == FULL else "") + (f" --seed {seed}" if seed else ""),
        "machine": f"{platform.system()} {platform.machine()}, {processor_name()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "lightning", "av")},
        "seconds": watch.seconds,
        "chance": CHANCE,
        "results": [result.to_dict() for result in results],
        "export": parity,
    }
    write_json(folder / "report.json", report)
    write_json(folder / "answers.json", {name: [result.reply for result in part] for name, part in answers.items()})
    (folder / "results.md").write_text(as_markdown(results), encoding="utf-8")
    plot(results, folder / "accuracy_against_time.png")
    show(results, answers, console)
    return report


def show(table: list[SystemResult], answers: dict[str, list[Result]], console: Console) -> None:
    """The end of the demo: a few answers, the table, and the comparison that the project is about."""
    frames = max(FRAMES[LMA])
    results = answers[f"{LMA}, {frames} frames"]
    console.rule("[bold]Ask about a video")
    console.print(f"{results[0].question.video}, {frames} frames")
    for result in results[:5]:
        question = result.question
        console.print(f"  {question.text}  ->  [bold]{result.reply}[/bold]  (right: {question.answer})")
    console.print(as_table(table, console.width))
    by = {(r.system, r.frames): r for r in table}
    teacher, student = by[TEACHER, frames // 8], by[LMA, frames]
    console.print(
        f"At 8x the frames ({frames} against {frames // 8}) the aligned student takes "
        f"{student.total_ms / teacher.total_ms:.2f}x the teacher's time ({student.total_ms:.1f} against "
        f"{teacher.total_ms:.1f} ms) and is right on {100 * student.accuracy:.1f} % against "
        f"{100 * teacher.accuracy:.1f} % (standard errors {100 * student.error:.1f} and {100 * teacher.error:.1f})."
    )
