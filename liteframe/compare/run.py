"""A comparison from options to figures: ask what has no reply, time what has no time, write what came out.

The folder holds settings.json, what determines all figures; answers/SYSTEM-FRAMES/, each as `liteframe eval` leaves it;
times.jsonl, a line for each round of timing; compare.json, results.md and the pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from liteframe.compare.pictures import draw
from liteframe.compare.points import Point, as_json, point_of
from liteframe.compare.systems import BLIND, SystemName, build_systems, space_of
from liteframe.compare.tables import markdown
from liteframe.compare.times import Timed, reason, time_points, warmups
from liteframe.data.video.errors import VideoError
from liteframe.data.video.process import DecodeProcess
from liteframe.evaluate.asking import Asking, System, ask_all, question_text, read_video
from liteframe.evaluate.benchmarks.base import Benchmark, Dataset, Question
from liteframe.evaluate.folder import EvalFolder, answer_row, joined_settings, score_report, taker
from liteframe.evaluate.settings import determining, load_system, reduction_of
from liteframe.evaluate.shares import Shares, this_rank
from liteframe.files import write_atomically, write_json
from liteframe.journal import Journal
from liteframe.models.vlm.attach import processor_for, take_mode, with_encoder
from liteframe.training.report import environment

Model: TypeAlias = tuple[bool, str | None]  # with the LiteFrame encoder or without, and the encoder's mode


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how.

    Attributes:
        benchmark: whose questions are asked.
        dataset: they.
        asking: how; its frames are those of one point at a time.
        systems: `none` and `blind` among them.
        frames: numbers of frames, ascending.
        options: of `liteframe eval`: vlm, encoder, adapter, device, dtype, seed, deadline.
        timing_runs: passes of each system that are counted.
        modes: of an elastic encoder, the mode that a system's `mode` means at a number of frames.
    """

    benchmark: Benchmark
    dataset: Dataset
    asking: Asking
    systems: Sequence[SystemName]
    frames: Sequence[int]
    options: dict[str, Any]
    timing_runs: int
    modes: Mapping[tuple[str | None, int], str | None] = field(default_factory=dict)

    def points(self) -> list[tuple[SystemName, int]]:
        """Systems with their numbers of frames; without video there is one."""
        return [(s, count) for s in self.systems for count in (self.frames[:1] if s.base == BLIND else self.frames)]

    def reduction(self) -> dict[str, Any]:
        """How every reducer's tokens are counted and placed, see build_systems."""
        return {"fit": bool(self.options["fit"]), "positions": self.options["positions"] or "packed"}

    def model_of(self, system: SystemName, frames: int) -> Model:
        """Whether a system has the LiteFrame encoder, and in which mode."""
        return system.student, self.modes.get((system.mode, frames)) if system.student else None

    def models(self) -> list[Model]:
        """Those of all points; the dense one first."""
        return list(dict.fromkeys([(False, None), *(self.model_of(*point) for point in self.points())]))

    def place(self, frames: int, model: Model) -> int:
        """Which of the rounds over all videos this is: each can be shared out by itself."""
        return self.frames.index(frames) + len(self.frames) * self.models().index(model)


def compare(comparison: Comparison, folder: Path, console: Console) -> list[Point]:
    """Do what of a comparison is not done yet, write it, and return its points, those that failed included.

    Of several processes, the first times and writes when all have asked, and the others return no points.

    Raises:
        ValueError: the folder was begun with another model, prompt, questions or frames, or is in use.
    """
    plain = load_system({**comparison.options, "encoder": None, "adapter": None})
    whole = determining(comparison.benchmark, comparison.dataset, comparison.asking, comparison.options, plain.model)
    asked = {name: value for name, value in whole["asking"].items() if name != "frames"}
    reduction = {name: value for name in ("fit", "positions") if (value := comparison.options[name])}
    settings = {**whole, **reduction, "asking": {**asked, "frames": list(comparison.frames)}}
    session = {**environment(plain.model.device), **{k: comparison.options[k] for k in ("vlm", "encoder", "adapter")}}
    rank = this_rank()
    failures = dict[tuple[str, int], str]()
    with ExitStack() as stack:
        shares = stack.enter_context(Shares(folder, rank))
        values = joined_settings(folder, settings, None if rank.number else session, "--run")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "settings.json", values)
        folders = {
            (str(system), frames): stack.enter_context(
                EvalFolder(
                    folder / "answers" / f"{system}-{frames}",
                    _settings(whole, system, frames, comparison),
                    session,
                    rank.number,
                )
            )
            for system, frames in comparison.points()
        }
        shares.begin()
        for last in (False, True):  # with the others, and then what they left
            if last:
                shares.wait_for_all()
                for answers in folders.values():
                    answers.refresh()
            for model in comparison.models():
                if any(_todo(comparison, folders, system, frames) for system, frames in comparison.points()
                       if comparison.model_of(system, frames) == model
                       and (str(system), frames) not in failures):  # fmt: skip
                    student, mode = model
                    loaded = load_system({**comparison.options, "mode": mode}) if student else plain
                    failures |= _ask(comparison, model, loaded, folders, shares, console)
            if rank.number:
                return []
        times, untimed = _time(comparison, plain, folder, failures, console)
        points = [
            replace(
                _point(comparison, folders[str(system), frames], system, frames, times, {**untimed, **failures}),
                space=space_of(system, plain.model),
            )
            for system, frames in comparison.points()
        ]
    _write(comparison, points, values, times, folder)
    return points


def _settings(whole: dict[str, Any], system: SystemName, frames: int, comparison: Comparison) -> dict[str, Any]:
    """What determines the answers of one point, as `liteframe eval` writes it."""
    of_model, options = whole["model"], comparison.options
    if (mode := comparison.model_of(system, frames)[1]) is not None:
        of_model = {**of_model, "mode": mode}
    if not system.student:
        of_model = {**of_model, "sha256": {**of_model["sha256"], "encoder": None, "adapter": None}}
    reduction = reduction_of(system.reducer, system.ratio, options["fit"], options["positions"])
    blind = {"blind": True} if system.base == BLIND else {}
    asking = {**whole["asking"], "frames": frames}
    return {**whole, "model": of_model, "reduction": reduction, "asking": asking, **blind}


Folders = dict[tuple[str, int], EvalFolder]


def _todo(comparison: Comparison, folders: Folders, system: SystemName, frames: int) -> list[Question]:
    return folders[str(system), frames].todo(comparison.dataset.questions)


def _ask(
    comparison: Comparison,
    model: Model,
    loaded: System,
    folders: Folders,
    shares: Shares,
    console: Console,
) -> dict[tuple[str, int], str]:
    """Ask the systems of one model what has no reply yet, frames by frames; reasons of those that failed."""
    how = comparison.reduction()
    points = [point for point in comparison.points() if comparison.model_of(*point) == model]
    names = list(dict.fromkeys(system for system, _ in points))
    systems, unbuilt = build_systems(names, loaded.model, loaded.processor, remember=True, **how)
    failed = {(str(s), frames): reason(unbuilt[str(s)]) for s, frames in points if str(s) in unbuilt}
    benchmark, seed, questions = comparison.benchmark, comparison.options["seed"], comparison.dataset.questions
    with _progress(console) as bar:
        for frames in comparison.frames:
            todo = {
                str(system): asked
                for system, count in points
                if count == frames and str(system) in systems and (asked := _todo(comparison, folders, system, frames))
            }
            errors = dict[str, Exception]()
            task = bar.add_task(f"{frames} frames, {len(todo)} systems", total=sum(map(len, todo.values())))
            asking = replace(comparison.asking, frames=frames)
            of_frames = {name: folders[name, frames] for name in todo}
            take = taker(shares, of_frames, questions, len(questions) * comparison.place(frames, model))
            for reply in ask_all(systems, benchmark, todo, asking, errors, take):
                folders[reply.system, frames].append(answer_row(benchmark, reply, seed))
                bar.advance(task)
            for name in todo:
                folders[name, frames].sync()
            failed |= {(name, frames): reason(error) for name, error in errors.items()}
            if errors:
                bar.update(task, description=f"{frames} frames, {len(errors)} of {len(todo)} systems failed")
    return failed


def _time(
    comparison: Comparison, plain: System, folder: Path, failures: dict[tuple[str, int], str], console: Console
) -> tuple[dict[int, dict[str, Any]], dict[tuple[str, int], str]]:
    """Times by frames and system, all in one round of turns, or those of an earlier run of the same points; and why
    some have none.
    """
    points = {
        f"{system}-{frames}": (system, frames)
        for system, frames in comparison.points()
        if (str(system), frames) not in failures
    }
    wanted = {"points": list(points), "runs": comparison.timing_runs}
    with Journal(folder / "times.jsonl") as journal:
        rows = [row for _, row in journal.rows("remove this line, and it is timed again")]
        row = next((row for row in rows if {name: row[name] for name in wanted} == wanted), None)
        if row is None:
            built = _built(comparison, plain)
            samples = {frames: _sample(comparison, plain, frames) for frames in comparison.frames}
            passes = {
                key: Timed(built[comparison.model_of(system, frames)][str(system)], *samples[frames])
                for key, (system, frames) in points.items()
            }
            with console.status(f"timing {len(points)} points in turns, {comparison.timing_runs} passes of each"):
                times, errors = time_points(passes, comparison.timing_runs)
            row = {**wanted, "warmups": warmups(comparison.timing_runs), **environment(plain.model.device)}
            row |= {"times": times, "failed": errors}
            journal.append(row)
            journal.sync()
    found: dict[int, dict[str, Any]] = {frames: {} for frames in comparison.frames}
    for key, times_of_point in row["times"].items():
        system, frames = points[key]
        found[frames][str(system)] = times_of_point
    why_not = {key: f"not timed: {why}" for key, why in row["failed"].items()}
    return found, {(str(points[key][0]), points[key][1]): why for key, why in why_not.items()}


def _built(comparison: Comparison, plain: System) -> dict[Model, dict[str, System]]:
    """All systems around one language model; the adapter, which changes values and no shapes, is left out."""
    how, built = comparison.reduction(), dict[Model, dict[str, System]]()
    for student, mode in comparison.models():
        names = [system for system in comparison.systems if system.student == student]
        model, processor = plain.model, plain.processor
        if student:
            model = with_encoder(plain.model, comparison.options["encoder"])
            if mode is not None:
                take_mode(model, mode)
            processor = processor_for(plain.processor, model.config)
        built[student, mode] = build_systems(names, model, processor, remember=False, **how)[0]
    return built


def _sample(comparison: Comparison, plain: System, frames: int) -> tuple[np.ndarray, str]:
    """Frames of the first video that can be read, and the first question about it.

    Raises:
        ValueError: there is none.
    """
    asking = replace(comparison.asking, frames=frames)
    with DecodeProcess(asking.deadline) as decoder:
        for question in {question.video: question for question in reversed(comparison.dataset.questions)}.values():
            try:
                video = read_video(plain.encoder, decoder, question, asking)
            except VideoError:
                continue
            return video.frames, question_text(comparison.benchmark, question, video, asking)
    raise ValueError("none of the videos can be read: there is nothing to time; see `liteframe scan`")


def _point(
    comparison: Comparison,
    answers: EvalFolder,
    system: SystemName,
    frames: int,
    times: dict[int, dict[str, Any]],
    failed: dict[tuple[str, int], str],
) -> Point:
    """What a system came to at a number of frames; scores.json of its folder, as of `liteframe eval`."""
    why = failed.get((str(system), frames))
    shown = 0 if system.base == BLIND else frames
    if any(question.id not in answers.rows for question in comparison.dataset.questions):
        return Point(system, shown, failed=why or "not all questions were answered")
    questions, seed = comparison.dataset.questions, comparison.options["seed"]
    report = score_report(comparison.benchmark, questions, answers.rows, seed)
    write_json(answers.scores, report)
    return point_of(
        system, shown, comparison.benchmark, questions, answers.rows, report, times=times[frames].get(str(system)),
        failed=why,
    )  # fmt: skip


def _write(
    comparison: Comparison, points: Sequence[Point], settings: dict[str, Any], times: dict[int, Any], folder: Path
) -> None:
    record = {"settings": settings, "timing_runs": comparison.timing_runs, **as_json(points, comparison.frames)}
    write_json(folder / "compare.json", record)
    write_atomically(folder / "results.md", markdown(points, comparison.frames, _facts(comparison, settings)).encode())
    draw(points, folder)


def _facts(comparison: Comparison, settings: dict[str, Any]) -> list[str]:
    """How the figures were made, a sentence each."""
    session, options = settings["sessions"][-1], comparison.options
    videos = len({question.video for question in comparison.dataset.questions})
    parts = [options["vlm"], *(f"{name} {options[name]}" for name in ("encoder", "adapter") if options[name])]
    versions = [f"{name} {session['versions'][name]}" for name in ("torch", "transformers")]
    machine = f"{session['device']}, {session['threads']} threads, {session['platform']}"
    return [
        f"{comparison.benchmark.title}: {settings['questions']} questions about {videos} videos, one by one, greedily; "
        f"prompt {comparison.asking.prompt!r}.",
        f"{', '.join(map(str, parts))}; {settings['model']['dtype']}.",
        f"{session['date'][:10]}; {machine}; {', '.join(versions)}.",
        f"Times: {comparison.timing_runs} passes of each system after {warmups(comparison.timing_runs)} warm-ups, in "
        "turns, about one video.",
        "`none` is the dense Video LLM, `blind` the same without the video.",
        *_modes_found(comparison),
    ]


def _modes_found(comparison: Comparison) -> list[str]:
    """Which modes of an elastic encoder were found for those that follow from the number of frames."""
    found: dict[str, list[str]] = {}
    for (mode, frames), name in comparison.modes.items():
        if mode is not None and name != mode:
            found.setdefault(mode, []).append(f"{name} at {frames} frames")
    return [f"Mode {mode}: {', '.join(names)}." for mode, names in found.items()]


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    with Progress(
        *Progress.get_default_columns(), TimeElapsedColumn(), MofNCompleteColumn(), console=console
    ) as progress:
        yield progress
