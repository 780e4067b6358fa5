"""The demo: render, cache, distil, align, evaluate, export, reload, ask, by what a user would type."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from multiprocessing import get_start_method
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from liteframe_export.hf_encoder import export_encoder
from liteframe_export.hf_vlm import export_vlm
from liteframe_export.provenance import parts_of_run
from liteframe_export.reload_child import ask
from liteframe_export.verify import difference, reload
from rich.console import Console
from rich.progress import Progress

from liteframe.align.command import LMACommand
from liteframe.demo.report import AT, LMA, TEACHER, SystemResult, advantage, as_markdown, mean_results, plot, show
from liteframe.demo.systems import BENCHMARK, PROCESSES, build, compare_systems, name_of, read_evenly
from liteframe.distill.cache.builder import CacheOptions, builder_of_run
from liteframe.distill.command import CTDCommand
from liteframe.evaluate.benchmarks.base import Question, Result
from liteframe.files import write_json
from liteframe.machine import processor_name
from liteframe.toyworld.questions import CHANCE, write_toyworld
from liteframe.training.cache.build import build_cache
from liteframe.training.command import load_run, quiet_lightning
from liteframe.training.exit_codes import exit_codes

TRAINING = {"distill": CTDCommand, "align": LMACommand}
CONFIG = "--config=toy"
# A world so small would be timed by what it costs to start kernels, and one table has one device.
ON_THE_CPU = "--trainer.accelerator=cpu"
JPEG_QUALITY = 90


@dataclass(frozen=True)
class Settings:
    """How much a demo renders, stores and trains, and with how many seeds, each a world of its own."""

    train_videos: int
    test_videos: int
    views: int
    ctd_steps: int
    lma_steps: int
    timing_runs: int
    seeds: int = 1


QUICK = Settings(train_videos=600, test_videos=60, views=3, ctd_steps=1000, lma_steps=160, timing_runs=30)
FULL = Settings(train_videos=1200, test_videos=120, views=3, ctd_steps=2000, lma_steps=320, timing_runs=100, seeds=3)


class Stopwatch:
    """Announces the stages and remembers how long each took."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage and keep the seconds that the body takes."""
        self.console.rule(f"[bold]{len(self.seconds) + 1}. {name}")
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)


@dataclass(frozen=True)
class Journey:
    """What came of the road with one seed: the table's rows, the answers by `name_of`, and the export's parity."""

    rows: list[SystemResult]
    answers: dict[str, list[Result]]
    parity: dict[str, Any]


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


def train(command: str, *arguments: str) -> None:
    """Do in this process what `liteframe distill` or `align` does, on the CPU: what it trains is asked and timed there.

    Raises:
        SystemExit: it failed, and has said why.
    """
    words = ["fit", *arguments, ON_THE_CPU]
    print("$ liteframe", command, *words, flush=True)
    with exit_codes(f"liteframe {command}"):
        TRAINING[command](words)


def store_targets(videos: Path, cache: Path, views: int, seed: int) -> None:
    """Do what `torchrun -m liteframe cache build` does, in processes that Python starts."""
    words = [CONFIG, f"--data.videos={videos}", f"--seed_everything={seed}", ON_THE_CPU]
    typed = [*words, f"-o {cache} --views {views} --codec int8 --frames jpeg"]
    print(f"$ torchrun --nproc_per_node {PROCESSES} -m liteframe cache build", *typed, flush=True)
    quiet_lightning()  # which announces each process
    start: Any = get_start_method()
    gloo = DDPStrategy(start_method=start, process_group_backend="gloo")
    fabric = Fabric(accelerator="cpu", devices=PROCESSES, strategy=gloo, precision="32-true")
    fabric.launch(partial(store_share, words=words, cache=cache, options=CacheOptions(views, "int8", JPEG_QUALITY)))


def store_share(fabric: Fabric, words: list[str], cache: Path, options: CacheOptions) -> None:
    """What each process of `store_targets` does; the first shows how far it is with its share."""
    torch.set_num_threads(1)
    run = load_run(CTDCommand, words)
    with Progress(disable=not fabric.is_global_zero) as progress:
        tasks = {name: progress.add_task(name, total=None) for name in ("statistics", "clips")}
        build_cache(
            builder_of_run(run, options, fabric),
            cache,
            say=lambda text: progress.console.print(text, highlight=False),
            advance=lambda what, done, total: progress.update(tasks[what], completed=done, total=total),
        )


def travel(folder: Path, settings: Settings, seed: int, watch: Stopwatch, stage: str = "") -> Journey:
    """The whole road with one seed; `stage` is put behind the names of its stages."""
    console = watch.console
    with watch.stage(f"Render a small world of H.264 videos{stage}"), Progress(console=console) as progress:
        task = progress.add_task("videos", total=settings.train_videos + settings.test_videos)
        world = write_toyworld(
            folder / "videos",
            train=settings.train_videos,
            test=settings.test_videos,
            seed=seed,
            progress=lambda n: progress.update(task, advance=n),
        )
    with watch.stage(f"Cache: the teacher runs once over every video, and its pooled tokens are kept{stage}"):
        store_targets(world.train_videos, folder / "cache", settings.views, seed)
    with watch.stage(f"Distil: CTD, a student learns these tokens{stage}"):
        train(
            "distill",
            CONFIG,
            f"--data.videos={world.train_videos}",
            f"--data.cache={folder / 'cache'}",
            f"--run={folder / 'ctd'}",
            f"--trainer.max_steps={settings.ctd_steps}",
            "--data.workers=1",
            f"--seed_everything={seed}",
        )
    encoder, adapter = folder / "ctd" / "encoder", folder / "lma" / "adapter"
    with watch.stage(f"Align: LMA, LoRA teaches the language model to read the student{stage}"):
        train(
            "align",
            CONFIG,
            f"--model.encoder={encoder}",
            f"--data.conversations={world.train_rows}",
            f"--run={folder / 'lma'}",
            f"--trainer.max_steps={settings.lma_steps}",
            f"--seed_everything={seed}",
        )
    questions = BENCHMARK.load(world.test_rows).questions
    with watch.stage(f"Evaluate on videos that nobody has seen{stage}"):
        rows, answers = compare_systems(questions, encoder, adapter, settings.timing_runs, console)
    with watch.stage(f"Export, and reload where liteframe is not installed{stage}"):
        with ThreadPoolExecutor() as threads:  # each waits for the process that reloads it
            alone = threads.submit(export_encoder, encoder, folder / "hf-encoder")
            export_vlm(parts_of_run(folder / "lma"), folder / "hf-vlm")
            alone.result()
        parity = check_export(questions, encoder, adapter, folder / "hf-vlm", AT[LMA])
        console.print(
            f"{parity['same answers']} of {parity['questions']} answers are the same after export, "
            f"logits differ by at most {parity['largest logit difference']:.1e}"
        )
    return Journey(rows, answers, parity)


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
    tensors = [torch.from_numpy(video).clone() for video in videos]  # the file wants each its own memory
    with ThreadPoolExecutor() as threads:
        reloaded = threads.submit(reload, exported, "vlm", tensors, questions=texts, new_tokens=3)
        before = ask(*build(LMA, encoder, adapter), videos, texts, 3)
        after = reloaded.result()
    same = (before["answers"] == after.outputs["answers"]).all(-1)
    return {
        "questions": len(questions),
        "same answers": int(same.sum()),
        "largest logit difference": difference("logits", before["logits"], after.outputs["logits"]),
        "reloaded with": after.environment,
    }


def run_demo(folder: Path, settings: Settings, seed: int, console: Console) -> dict[str, Any]:
    """The whole road, with several seeds one after the other; returns what report.json holds."""
    prepare_folder(folder)
    folder = folder.resolve()
    seeds = list(range(seed, seed + settings.seeds))
    started = {"settings": asdict(settings), "seeds": seeds, "date": date.today().isoformat()}
    write_json(folder / "demo.json", started)
    watch = Stopwatch(console)
    journeys = [travel(folder, settings, seed, watch)] if len(seeds) == 1 else [
        travel(folder / f"seed_{one}", settings, one, watch, f" (seed {one})") for one in seeds
    ]  # fmt: skip
    results = mean_results([journey.rows for journey in journeys])
    student, teacher = name_of(LMA, AT[LMA]), name_of(TEACHER, AT[TEACHER])
    gain = advantage([(journey.answers[student], journey.answers[teacher]) for journey in journeys])
    report = {
        **started,
        "command": "liteframe demo" + (" --full" if settings == FULL else "") + (f" --seed {seed}" if seed else ""),
        "machine": f"{platform.system()} {platform.machine()}, {processor_name()}, {os.cpu_count()} cores, "
        f"threads: {torch.get_num_threads()}",
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "lightning", "av")},
        "seconds": watch.seconds,
        "chance": CHANCE,
        "results": [result.to_dict() for result in results],
        "by_seed": [[row.to_dict() for row in journey.rows] for journey in journeys],
        "student_over_teacher": gain.to_dict(),
        "export": [journey.parity for journey in journeys],
    }
    write_json(folder / "report.json", report)
    answers = {
        str(one): {name: [result.reply for result in part] for name, part in journey.answers.items()}
        for one, journey in zip(seeds, journeys, strict=True)
    }
    write_json(folder / "answers.json", answers)
    (folder / "results.md").write_text(as_markdown(results), encoding="utf-8")
    plot(results, folder / "accuracy_against_time.png")
    show(results, gain, journeys[0].answers[student], console)
    return report
