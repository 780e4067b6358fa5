"""What benchmarks/claims.py trains and asks, in which order."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

SEEDS = (0, 1, 2)
WHOLE = 64  # frames of a video of toyworld
RATIO = 1 / 16
DENSE_FRAMES = (4, 8, 16, 32, WHOLE)
SALIENCIES = ("cls", "received", "mean")
# Beside 1/16: what the authors of a method say of a ratio, or the next larger one of a frame's 16 tokens.
OTHER_RATIOS = {"fastvid": (1 / 8,), "flashvid": (1 / 8,), "vidcom2": (1 / 4,), "evs": (1 / 4,)}


@dataclass(frozen=True)
class Setup:
    """How much to run; of the questions, a third belongs to each of three worlds that nothing was tuned on."""

    scenes: int = 160
    steps: int = 300
    batch: int = 8
    statistics_clips: int = 64
    test_scenes: int = 20
    timing_runs: int = 20


@dataclass(frozen=True)
class Variant:
    """A student: what differs from configs/ctd/toy.yaml.

    Attributes:
        student: fields of LiteFrameConfig.
        objective: a name of `objectives`.
        target: fields of TargetSettings.
        saliency: what WAP weighs by: "own", the teacher's, "mean", nothing, or "norm", the length of a feature.
        init: weight_selection or random.
        frames: of a video at which it is asked.
    """

    student: dict[str, Any] = field(default_factory=dict)
    objective: str = "ctd"
    target: dict[str, Any] = field(default_factory=dict)
    saliency: str = "own"
    init: str = "weight_selection"
    frames: tuple[int, ...] = (WHOLE,)


def strided(*strides: tuple[int, tuple[int, int, int]], **more: Any) -> dict[str, Any]:
    """Student fields with a stride after each of these blocks."""
    return {"downsample": dict(strides), **more}


BASE = "student"
# In the order of their value. Frames other than all 64 give 16 tokens of the language model at each compression.
VARIANTS: dict[str, Variant] = {
    BASE: Variant(frames=(8, 16, 32, WHOLE)),
    "plain means": Variant(saliency="mean"),
    "no mixer": Variant({"temporal_mixer": "none"}),
    "spatial only": Variant(strided((1, (1, 2, 2)), (2, (1, 2, 2)), temporal_mixer="none")),
    "attn": Variant({"temporal_mixer": "attn"}),
    "clips of 4": Variant({"clip_frames": 4}),
    "rtd": Variant(objective="rtd"),
    "no standardization": Variant(target={"standardize": "none"}),
    "random start": Variant(init="random"),
    "strides after 3 and 5": Variant(strided((3, (2, 2, 2)), (5, (2, 1, 1)))),
    "no clipping": Variant(target={"clipping": "none"}),
    "rtd_linear": Variant(objective="rtd_linear"),
    "4x": Variant(strided((1, (1, 2, 2))), frames=(4, WHOLE)),
    "8x": Variant(strided((1, (2, 2, 2))), frames=(8, WHOLE)),
    "32x": Variant(strided((1, (2, 2, 2)), (2, (4, 1, 1))), frames=(32, WHOLE)),
    "64x": Variant(strided((1, (2, 2, 2)), (2, (2, 2, 2)))),
    "attn_block": Variant({"temporal_mixer": "attn_block"}),
    "dense": Variant({"temporal_mixer": "dense"}),
    "spacetime": Variant({"temporal_mixer": "spacetime"}),
    "strides after 2 and 4": Variant(strided((2, (2, 2, 2)), (4, (2, 1, 1)))),
    "no compression": Variant(strided(temporal_mixer="none")),
}


@dataclass(frozen=True)
class Cell:
    """What is done in one go, and is a row when it is done.

    Attributes:
        kind: "reduced" (systems without training on one world), "times", "pooled" (the teacher with WAP), or "student".
        name: of a variant, or of what WAP weighs by.
        seed: of a student, or the number of a world.
    """

    kind: str
    name: str = ""
    seed: int = 0

    def key(self) -> dict[str, Any]:
        """As a row has it."""
        return asdict(self)


def plan() -> list[Cell]:
    """All cells: first what needs no training, then seed by seed all variants."""
    cells = [Cell("reduced", seed=world) for world in SEEDS] + [Cell("times")]
    cells += [Cell("pooled", saliency) for saliency in SALIENCIES]
    return cells + [Cell("student", name, seed) for seed in SEEDS for name in VARIANTS]
