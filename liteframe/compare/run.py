"""A comparison from options to figures: ask what has no reply, time what has no time, write what came out.

The folder holds settings.json, what determines all figures; answers/SYSTEM-FRAMES/, each as `liteframe eval` leaves it;
times.jsonl, a line for each round of timing; compare.json, results.md and the pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from liteframe.compare.pictures import draw
from liteframe.compare.points import Point, as_json, point_of
from liteframe.compare.systems import BLIND, SystemName, build_systems, space_of
from liteframe.compare.tables import markdown
from liteframe.compare.times import Timed, reason, time_points, warmups
from liteframe.data.video.errors import VideoError
from liteframe.data.video.process import DecodeProcess
from liteframe.evaluate.asking import Asking, System, VideoFrames, ask_all, question_text, read_video
from liteframe.evaluate.benchmarks.base import Benchmark, Dataset, Question
from liteframe.evaluate.folder import EvalFolder, answer_row, joined_settings, score_report, taker
from liteframe.evaluate.settings import determining, load_system, reduction_of
from liteframe.evaluate.shares import Shares, this_rank
from liteframe.files import write_atomically, write_json
from liteframe.journal import Journal
from liteframe.models.vlm.attach import processor_for, with_encoder
from liteframe.training.report import environment


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
    """

    benchmark: Benchmark
    dataset: Dataset
    asking: Asking
    systems: Sequence[SystemName]
    frames: Sequence[int]
    options: dict[str, Any]
    timing_runs: int

    def points(self) -> list[tuple[SystemName, int]]:
        """Systems with their numbers of frames; without video there is one."""
        return [(s, count) for s in self.systems for count in (self.frames[:1] if s.base == BLIND else self.frames)]

    def reduction(self) -> dict[str, Any]:
        """How every reducer's tokens are counted and placed, see build_systems."""
        return {"fit": bool(self.options["fit"]), "positions": self.options["positions"] or "packed"}

    def place(self, frames: int, student: bool) -> int:
        """Which of the rounds over all videos this is: each can be shared out by itself."""
        return self.frames.index(frames) + len(self.frames) * student


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
                    _settings(whole, system, frames, comparison.options),
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
            for student in (False, True):
                of_kind = [system for system in comparison.systems if system.student == student]
                if any(_todo(comparison, folders, system, frames) for system, frames in comparison.points()
                       if system.student == student and (str(system), frames) not in failures):  # fmt: skip
                    loaded = load_system(comparison.options) if student else plain
                    failures |= _ask(comparison, of_kind, loaded, folders, shares, console)
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


def _settings(whole: dict[str, Any], system: SystemName, frames: int, options: dict[str, Any]) -> dict[str, Any]:
    """What determines the answers of one point, as `liteframe eval` writes it."""
    of_model = whole["model"]
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
    names: Sequence[SystemName],
    loaded: System,
    folders: Folders,
    shares: Shares,
    console: Console,
) -> dict[tuple[str, int], str]:
    """Ask the systems of one model what has no reply yet, frames by frames; reasons of those that failed."""
    how = comparison.reduction()
    systems, unbuilt = build_systems(names, loaded.model, loaded.processor, remember=True, **how)
    failed = {(name, frames): reason(error) for name, error in unbuilt.items() for frames in comparison.frames}
    benchmark, seed, questions = comparison.benchmark, comparison.options["seed"], comparison.dataset.questions
    with _progress(console) as bar:
        for frames in comparison.frames:
            todo = {
                str(system): asked
                for system, count in comparison.points()
                if count == frames and str(system) in systems and (asked := _todo(comparison, folders, system, frames))
            }
            errors = dict[str, Exception]()
            task = bar.add_task(f"{frames} frames, {len(todo)} systems", total=sum(map(len, todo.values())))
            asking = replace(comparison.asking, frames=frames)
            of_frames = {name: folders[name, frames] for name in todo}
            take = taker(shares, of_frames, questions, len(questions) * comparison.place(frames, names[0].student))
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
        f"{system}-{frames}": (str(system), frames)
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
                key: Timed(built[name], samples[frames][0].frames, samples[frames][1])
                for key, (name, frames) in points.items()
            }
            with console.status(f"timing {len(points)} points in turns, {comparison.timing_runs} passes of each"):
                times, errors = time_points(passes, comparison.timing_runs)
            row = {**wanted, "warmups": warmups(comparison.timing_runs), **environment(plain.model.device)}
            row |= {"times": times, "failed": errors}
            journal.append(row)
            journal.sync()
    found: dict[int, dict[str, Any]] = {frames: {} for frames in comparison.frames}
    for key, times_of_point in row["times"].items():
        name, frames = points[key]
        found[frames][name] = times_of_point
    return found, {points[key]: f"not timed: {why}" for key, why in row["failed"].items()}


def _built(comparison: Comparison, plain: System) -> dict[str, System]:
    """All systems around one language model; the adapter, which changes values and no shapes, is left out."""
    plains = [system for system in comparison.systems if not system.student]
    how = comparison.reduction()
    systems, _ = build_systems(plains, plain.model, plain.processor, remember=False, **how)
    if students := [system for system in comparison.systems if system.student]:
        model = with_encoder(plain.model, comparison.options["encoder"])
        processor = processor_for(plain.processor, model.config)
        systems |= build_systems(students, model, processor, remember=False, **how)[0]
    return systems


def _sample(comparison: Comparison, plain: System, frames: int) -> tuple[VideoFrames, str]:
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
            return video, question_text(comparison.benchmark, question, video, asking)
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
    ]


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    with Progress(
        *Progress.get_default_columns(), TimeElapsedColumn(), MofNCompleteColumn(), console=console
    ) as progress:
        yield progress
