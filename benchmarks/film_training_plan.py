"""What benchmarks/film_training.py trains, on what, with which memories it asks, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

SEEDS = (0, 1, 2)  # of the order and of the random weights of what is trained
TEST_FILMS = {2: 5, 4: 5}  # of each of three worlds, by scenes
FRAMES = 256  # of the longest film that is learned from: four scenes
LORA = ("--model.lora.rank=16", "--model.lora.alpha=32", "--model.lora.dropout=0.0")
SUMMARY_RATIO = 8  # tokens that a summary token stands for when films are asked about


@dataclass(frozen=True)
class Setup:
    """How much to run.

    Attributes:
        films: that are learned from, each with some turns at one moment.
        turns: of a film.
        pair_films: about which preference pairs are made.
        moments: of a held-out film at which it is asked.
        base_steps: of the alignment that all others go on from.
        steps: of each run that goes on from it.
        pair_steps: of TPO, and of fine-tuning on the chosen answers.
        batch: films in a step.
        pair_batch: pairs, or chosen answers, in a step.
        scenes: videos of one scene from which logits are distilled.
        scene_steps: of that, eight videos in each.
        test_scenes: of each of three worlds, with five questions each.
    """

    films: int = 96
    turns: int = 4
    pair_films: int = 36
    moments: int = 2
    base_steps: int = 50
    steps: int = 40
    pair_steps: int = 25
    batch: int = 4
    pair_batch: int = 4
    scenes: int = 120
    scene_steps: int = 40
    test_scenes: int = 20


# Memories that films are asked with. Those of the second part show a question about as few entries as summary tokens
# leave, labels included.
SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "all": ("all", {}),
    "summary": ("summary", {"budget": 1024, "ratio": SUMMARY_RATIO}),
    "summary, 16": ("summary", {"budget": 1024, "ratio": 16}),
    "window": ("window", {"budget": 24}),
    "average": ("clips", {"budget": 1024, "slots_per_clip": 8, "chosen": 1024, "selector": "last"}),
    "saliency": ("saliency", {"budget": 48, "threshold": None}),
    "bank": ("bank", {"budget": 40}),
    "learned clips": ("learned_clips", {"budget": 1024}),
    "qformer": ("qformer", {"budget": 40}),
    "clips, attention": ("clips", {"budget": 1024}),
    "clips, last": ("clips", {"budget": 1024, "selector": "last"}),
}
SELECTIONS = {"selection": "true", "selection, clips alone": "false"}  # whether a clip's memory is handed on
LEARNED = ("films", "apart")  # rows with the right answers
UNTRAINED = ("all", "window", "average", "saliency", "bank", "clips, attention", "clips, last")


@dataclass(frozen=True)
class Arm:
    """A run of `liteframe align fit` or `prefer fit` that goes on from the shared one.

    Attributes:
        rows: what it learns from: "films", several questions about one as turns; "apart", each of these in a row of its
            own, with the span that it is about; "chosen" or "pairs", of the shared one's own answers.
        options: of the command, beside those that all have.
        systems: memories that its films are asked with.
        memory: that its adapter is for.
        times: how many times the steps of the setup it has.
        rate: its highest learning rate.
    """

    rows: str = "films"
    options: tuple[str, ...] = ()
    systems: tuple[str, ...] = ("all",)
    memory: str | None = None
    times: int = 1
    rate: float = 5e-4


def summarizing(ratios: str) -> Arm:
    """A run that learns summary tokens, whose slots go with their labels."""
    values = {"rank": 16, "segments": 8, "labels": "drop", "ratios": ratios}
    options = tuple(f"--model.summary.{name}={value}" for name, value in values.items())
    return Arm(options=options, systems=("summary", "summary, 16"), memory="summary", times=2, rate=1e-3)


def selecting(propagate: str) -> Arm:
    """A run that learns memories of clips and which of them a question is about."""
    option = f"--model.learned_clips.propagate={propagate}"
    return Arm("apart", (option,), ("learned clips",), memory="learned_clips", rate=1e-3)


ARMS: dict[str, Arm] = {
    "chosen answers": Arm("chosen", rate=3e-4),
    "TPO": Arm("pairs", rate=3e-4),
    "more alignment": Arm(systems=UNTRAINED),
    "summary, curriculum": summarizing("[[2,4],[8],[16]]"),
    "summary, direct": summarizing("[[8]]"),
    **{name: selecting(handed) for name, handed in SELECTIONS.items()},
    "Q-Former": Arm(
        options=("--model.qformer.queries=16", "--model.qformer.width=64"),
        systems=("qformer",),
        memory="qformer",
        times=2,
        rate=1e-3,
    ),
}
# The same with four times the steps: whether a method only began to learn.
ARMS |= {
    f"{name}, longer": replace(ARMS[name], times=4 * ARMS[name].times)
    for name in ("summary, direct", "TPO", "chosen answers", "selection")
}
BASE = "base"
SCENE_ARMS = {"labels alone": 0.0, "distillation": 1.0}  # and the weight of the soft target


@dataclass(frozen=True)
class Cell:
    """What is done in one go, and is a row when it is done.

    Attributes:
        kind: "base" (the alignment that all share, asked with memories that need no training), "film" (an arm) or
            "scene" (logit distillation).
        name: of an arm.
        seed: of an arm.
    """

    kind: str
    name: str
    seed: int = 0

    def key(self) -> dict[str, Any]:
        """As a row has it."""
        return asdict(self)


def plan(names: Sequence[str] | None = None) -> list[Cell]:
    """All cells, or those of some arms: first what all share, then seed by seed every arm."""
    arms = [Cell("scene", name) for name in SCENE_ARMS] + [Cell("film", name) for name in ARMS]
    cells = [Cell("base", BASE)] + [Cell(arm.kind, arm.name, seed) for seed in SEEDS for arm in arms]
    return [cell for cell in cells if names is None or cell.name in names]
