"""From the options of an evaluation to the model, how questions are asked, and what determines the scores."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers.utils import logging

from liteframe.answer.crops import parse_crops
from liteframe.answer.labels import LABELS
from liteframe.answer.memory import parse_memory
from liteframe.answer.reduced_encoder import encoder_with
from liteframe.data.video.sampling import SAMPLINGS
from liteframe.evaluate.asking import Asking, System
from liteframe.evaluate.benchmarks.base import Benchmark, Dataset, ask_text, check_prompt
from liteframe.evaluate.online import Watching
from liteframe.evaluate.shares import this_rank
from liteframe.files import file_digest
from liteframe.models.checkpoints import checkpoint_source
from liteframe.models.vlm.load import find_device, load_video_llm
from liteframe.models.vlm.modes import find_mode

# Packages whose version can change a reply.
PACKAGES = ("liteframe", "torch", "torchvision", "transformers", "peft", "av", "numpy")
# What changes a model's answers; model cards and training left-overs do not.
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "*.model", "*.py")
REPORTS = ("parity.json", "report.json")


def asking_of(benchmark: Benchmark, dataset: Dataset, options: dict[str, Any]) -> Asking:
    """How questions are put, checked.

    Raises:
        ValueError: an option is out of range, the prompt lacks a place, or there are no subtitles to show.
    """
    for name, kind, least in (("frames", int, 1), ("max_new_tokens", int, 1), ("seed", int, 0)):
        value = options[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind) or value < least):
            raise ValueError(f"--{name.replace('_', '-')} {value!r}: a whole number of at least {least} is needed")
    for name in ("fps", "deadline"):
        value = options[name]
        wrong = isinstance(value, bool) or not isinstance(value, int | float | None)
        if wrong or (value is not None and not (math.isfinite(value) and value > 0)):
            raise ValueError(f"--{name} {value!r}: a positive number is needed")
    for name, kinds in (("sampling", SAMPLINGS), ("labels", LABELS)):
        if options.get(name) not in (None, *kinds):
            raise ValueError(f"--{name} {options[name]}: expected one of {', '.join(kinds)}")
    subtitles = bool(options["subtitles"])
    prompt = benchmark.prompt
    if subtitles:
        if benchmark.subtitle_prompt is None:
            raise ValueError(f"--subtitles: {benchmark.title} has none")
        if not any(q.subtitles and Path(q.subtitles).is_file() for q in dataset.questions):
            raise ValueError(f"--subtitles: no subtitle file is there; expected {benchmark.layout}")
        prompt = benchmark.subtitle_prompt
    prompt = options["prompt"] or prompt
    check_prompt(prompt, subtitles)
    prompts = _prompts(benchmark, options.get("prompts"))
    return Asking(
        frames=options["frames"],
        fps=options["fps"],
        prompt=prompt,
        subtitles=subtitles,
        max_new_tokens=options["max_new_tokens"] or benchmark.max_new_tokens,
        deadline=options["deadline"],
        prompts=prompts,
        sampling=options.get("sampling") or SAMPLINGS[0],
    )


def _prompts(benchmark: Benchmark, given: Any) -> dict[str, str]:
    """The benchmark's prompts by task, those that are given in their place."""
    known = dict(benchmark.prompts)
    if given is None:
        return known
    if not isinstance(given, dict) or (unknown := sorted(set(given) - set(known))):
        found = unknown if isinstance(given, dict) else given
        raise ValueError(f"prompts: unknown {found}; {benchmark.title} has some for {', '.join(known) or 'no task'}")
    for prompt in given.values():
        check_prompt(str(prompt), False)
    return known | given


def watching_of(benchmark: Benchmark, options: dict[str, Any]) -> Watching | None:
    """How a stream is watched, checked; None where videos are read as a whole.

    Raises:
        ValueError: an option that has no effect is given, or there is no such memory or label.
    """
    given = {name: options.get(name) for name in ("memory", "restart")}
    if not options.get("online"):
        if benchmark.polls:
            raise ValueError(f"{benchmark.title} polls a stream: add --online")
        if idle := [f"--{name}" for name, value in given.items() if value]:
            raise ValueError(f"{idle[0]} is about a stream: add --online")
        return None
    for name in ("frames", "sampling", "subtitles", "reducer"):
        if options.get(name):
            raise ValueError(f"--{name} is about videos that are read as a whole: leave it out, or leave out --online")
    if str(options.get("mode") or "").startswith("auto"):
        raise ValueError("--mode auto fits a number of frames, and a stream has none: name a mode")
    if options.get("crops") and parse_crops(options["crops"])[2] is not None:
        raise ValueError(
            f"--crops {options['crops']} shares tokens out among the slots of a video, and a stream has no number of "
            "them: leave the total out, or leave out --online"
        )
    memory = given["memory"] or "all"
    parse_memory(memory)
    labels = options.get("labels") or LABELS[0]
    return Watching(memory, float(options["fps"] or 1.0), labels, bool(given["restart"]))


def load_system(options: dict[str, Any]) -> System:
    """The Video LLM on the device asked for, and how it looks at a video."""
    device = find_device(options["device"])
    if options["device"] is None and device.type == "cuda":  # each process has its own
        device = torch.device("cuda", this_rank().local % torch.cuda.device_count())
        torch.cuda.set_device(device)
    logging.disable_progress_bar()
    model, processor = load_video_llm(
        options["vlm"],
        encoder=options["encoder"],
        adapter=options["adapter"],
        dtype=options["dtype"] or "auto",
        mode=options["mode"],
        memory=parse_memory(options["memory"]).trained_for if options.get("memory") else None,
    )
    model.to(device)
    reduction = (options["reducer"], options["ratio"], bool(options["fit"]), options["crops"])
    encoder = encoder_with(model, processor, *reduction)
    return System(
        model, processor, encoder, positions=options["positions"] or "packed", labels=options.get("labels") or LABELS[0]
    )


def mode_for(
    mode: str | None, options: dict[str, Any], asking: Asking, benchmark: Benchmark, dataset: Dataset
) -> str | None:
    """The mode of an elastic encoder that --mode means for all questions; errors as of find_mode."""
    asked = (ask_text(asking.prompt, question, benchmark.option_format) for question in dataset.questions)
    return find_mode(
        mode,
        options["vlm"],
        options["encoder"],
        frames=asking.frames,
        words=max((len(text.encode()) for text in asked), default=0),
        answer=asking.max_new_tokens,
    )


def determining(
    benchmark: Benchmark,
    dataset: Dataset,
    asking: Asking,
    options: dict[str, Any],
    model: Any,
    watching: Watching | None = None,
) -> dict[str, Any]:
    """Everything that determines the scores: a run is continued only if all of it is the same."""
    parts = {name: options[name] for name in ("vlm", "encoder", "adapter")}
    asked = {field.name: getattr(asking, field.name) for field in fields(asking)}
    asked["prompts"] = dict(asking.prompts)
    if not asking.prompts:
        del asked["prompts"]
    del asked["deadline"]  # changes no reply: a run whose videos were too slow may be continued with another
    if asked["sampling"] == SAMPLINGS[0]:
        del asked["sampling"]
    system_labels = options.get("labels") or LABELS[0]
    subtitles = {Path(q.subtitles) for q in dataset.questions if q.subtitles and Path(q.subtitles).is_file()}
    return {
        "benchmark": benchmark.name,
        "questions": len(dataset.questions),
        "annotations": {"files": [path.name for path in dataset.files], "sha256": files_digest(dataset.files)},
        "subtitles_sha256": files_digest(subtitles) if asking.subtitles else None,
        "model": {
            "sha256": {name: None if source is None else model_digest(source) for name, source in parts.items()},
            "dtype": str(model.dtype).removeprefix("torch."),
            **({} if options["mode"] is None else {"mode": options["mode"]}),
        },
        "reduction": reduction_of(options["reducer"], options["ratio"], options["fit"], options["positions"]),
        **({} if options["crops"] is None else {"crops": options["crops"]}),
        **({} if watching is not None or system_labels == LABELS[0] else {"labels": system_labels}),
        "asking": {**asked, "option_format": benchmark.option_format},
        **({} if watching is None else {"online": asdict(watching)}),
        "decoding": {"kind": "greedy", "batch": 1},
        "rule": benchmark.rule,
        "seed": options["seed"],
        "device": model.device.type,
        "versions": {name: version(name) for name in PACKAGES},
    }


def reduction_of(
    reducer: str | None, ratio: float | None, fit: bool | None, positions: str | None
) -> dict[str, Any] | None:
    """What determines scores about a reducer; nothing without one."""
    more: dict[str, Any] = {"fit": True} if fit else {}
    more |= {"positions": positions} if positions == "original" else {}
    return None if reducer is None else {"reducer": reducer, "ratio": ratio, **more}


def model_digest(source: str | os.PathLike[str]) -> str:
    """SHA-256 over names and contents of a model's weights, configuration, tokenizer and code.

    Args:
        source: a folder, or the id of a Hugging Face model that has been downloaded.

    Raises:
        ValueError: there is no such file in it.
    """
    folder = Path(checkpoint_source(source))
    if not folder.is_dir():
        folder = Path(snapshot_download(str(source), local_files_only=True))
    files = {path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.name not in REPORTS}
    if not files:
        raise ValueError(f"{source}: holds no file of a model ({', '.join(MODEL_FILES)})")
    return files_digest(files)


def files_digest(paths: Iterable[Path]) -> str:
    """SHA-256 over the names and contents of files, whatever their order and folder."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: (path.name, str(path))):
        content = file_digest(path)
        digest.update(f"{path.name}\0{content}\n".encode())
    return digest.hexdigest()
