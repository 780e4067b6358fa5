"""Short videos of moving coloured shapes: drawn from a seed, rendered to frames, written as H.264 files.

Every video shows two shapes that appear one after the other and drift in a straight line, and a small star that
flashes for three frames only: a model that samples few frames usually misses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from liteframe.files import replacing

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "green": (40, 190, 60),
    "blue": (60, 90, 240),
    "yellow": (235, 215, 45),
    "purple": (165, 60, 200),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross")
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

FRAMES = 64
FPS = 8
SIZE = 64
FLASH_FRAMES = 3


@dataclass(frozen=True)
class Mover:
    """A shape that is visible from frame `first` to the end and moves in a straight line."""

    shape: str
    colour: str
    direction: str
    radius: float  # pixels
    first: int  # frame index
    start: tuple[float, float]  # centre (x, y) in pixels at frame `first`
    speed: float  # pixels per frame

    def centre(self, frame: int) -> tuple[float, float]:
        """Centre (x, y) in pixels at a frame index."""
        dx, dy = DIRECTIONS[self.direction]
        moved = self.speed * (frame - self.first)
        return self.start[0] + dx * moved, self.start[1] + dy * moved


@dataclass(frozen=True)
class Flash:
    """A star that is visible for `FLASH_FRAMES` frames from frame `first`."""

    colour: str
    radius: float
    first: int
    centre: tuple[float, float]

    def visible(self, frame: int) -> bool:
        """Whether the star is on the given frame."""
        return self.first <= frame < self.first + FLASH_FRAMES


@dataclass(frozen=True)
class Scene:
    """Everything that is needed to draw one video; `movers` are in order of appearance, `size` is (height, width)."""

    movers: tuple[Mover, Mover]
    flash: Flash
    background: tuple[int, int, int]
    noise_seed: int
    size: tuple[int, int] = (SIZE, SIZE)


def _draw_mover(rng: np.random.Generator, shape: str, colour: str, first: int, size: tuple[int, int]) -> Mover:
    direction = str(rng.choice(list(DIRECTIONS)))
    dx, dy = DIRECTIONS[direction]
    length, breadth = size[::-1] if dx else size  # pixels along the way, and across it
    radius = float(rng.uniform(8.5, 11.0))
    travel = float(rng.uniform(26.0, length - 2 * radius - 2))
    lo = radius + 1
    along = float(rng.uniform(lo, length - lo - travel))  # coordinate at the low end of the way
    across = float(rng.uniform(lo, breadth - lo))
    if dx + dy < 0:
        along += travel
    start = (along, across) if dx else (across, along)
    return Mover(shape, colour, direction, radius, first, start, travel / (FRAMES - 1 - first))


def _separated(movers: tuple[Mover, Mover]) -> bool:
    """Whether the two shapes stay clear of each other for most of the time that both are visible."""
    both = range(max(m.first for m in movers), FRAMES)
    a, b = (np.array([m.centre(t) for t in both]) for m in movers)
    gap = np.linalg.norm(a - b, axis=1) - 0.9 * sum(m.radius for m in movers)
    return float((gap < 0).mean()) <= 0.15


def sample_scene(rng: np.random.Generator, size: tuple[int, int] = (SIZE, SIZE)) -> Scene:
    """Draw a scene: colours and shapes of the two movers differ, and the star has a third colour.

    Args:
        rng: that draws.
        size: height and width in pixels; the shapes are of the same size in all.
    """
    colours = [str(c) for c in rng.permutation(list(COLOURS))[:3]]
    shapes = [str(s) for s in rng.permutation(SHAPES)[:2]]
    first = int(rng.integers(0, 7))
    second = first + int(rng.integers(17, 27))  # > 2 sampling periods of an 8-frame reading: the order is visible to it
    while True:
        movers = (
            _draw_mover(rng, shapes[0], colours[0], first, size),
            _draw_mover(rng, shapes[1], colours[1], second, size),
        )
        if _separated(movers):
            break
    when = int(rng.integers(1, FRAMES - FLASH_FRAMES))
    radius = float(rng.uniform(7.0, 8.5))
    lo = radius + 1
    spots = rng.uniform(lo, np.array(size[::-1]) - lo, size=(64, 2))
    there = np.array([m.centre(max(when, m.first)) for m in movers])
    clear = np.linalg.norm(spots[:, None] - there[None], axis=-1).min(axis=1)
    spot = spots[int(np.argmax(clear > 18.0))] if (clear > 18.0).any() else spots[int(np.argmax(clear))]
    flash = Flash(colours[2], radius, when, (float(spot[0]), float(spot[1])))
    grey = int(rng.integers(15, 60))
    tint = rng.integers(-8, 9, size=3)
    background = tuple(int(np.clip(grey + t, 0, 255)) for t in tint)
    return Scene(movers, flash, background, int(rng.integers(0, 2**31)), size)  # type: ignore[arg-type]


def coverage(
    shape: str, centre: tuple[float, float], radius: float, size: tuple[int, int] = (SIZE, SIZE)
) -> np.ndarray:
    """Opacity in [0, 1] of a shape on the pixel grid, `[H, W]`, with edges one pixel soft."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    dx, dy = x + 0.5 - centre[0], y + 0.5 - centre[1]
    if shape == "circle":
        inside = radius - np.hypot(dx, dy)
    elif shape == "square":
        inside = 0.86 * radius - np.maximum(np.abs(dx), np.abs(dy))
    elif shape == "triangle":
        inside = np.minimum(0.75 * radius - dy, (dy + radius) * 0.5 - np.abs(dx) * 0.9)
    elif shape == "cross":
        arm = 0.36 * radius
        upright = np.minimum(arm - np.abs(dx), radius - np.abs(dy))
        level = np.minimum(radius - np.abs(dx), arm - np.abs(dy))
        inside = np.maximum(upright, level)
    elif shape == "star":
        angle = np.arctan2(dx, -dy)
        reach = radius * (0.74 + 0.26 * np.cos(5 * angle))
        inside = reach - np.hypot(dx, dy)
    else:
        raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}, star")
    return np.clip(inside + 0.5, 0.0, 1.0)


def visible_objects(scene: Scene, frame: int) -> list[tuple[str, str, tuple[float, float], float]]:
    """What is on a frame, back to front: (shape, colour, centre in pixels, radius in pixels)."""
    objects = [(m.shape, m.colour, m.centre(frame), m.radius) for m in scene.movers if frame >= m.first]
    if scene.flash.visible(frame):
        objects.append(("star", scene.flash.colour, scene.flash.centre, scene.flash.radius))
    return objects


def render(scene: Scene) -> np.ndarray:
    """Frames of a scene, uint8 RGB `[FRAMES, H, W, 3]`."""
    rng = np.random.default_rng(scene.noise_seed)
    height, width = scene.size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / SIZE
    slope = rng.uniform(-12, 12, size=2)
    backdrop = np.array(scene.background, np.float32) + (slope[0] * x + slope[1] * y)[..., None]
    backdrop = backdrop + rng.normal(0.0, 2.5, size=backdrop.shape)
    frames = np.empty((FRAMES, height, width, 3), np.uint8)
    for t in range(FRAMES):
        canvas = backdrop.copy()
        for shape, colour, centre, radius in visible_objects(scene, t):
            alpha = coverage(shape, centre, radius, scene.size)[..., None]
            canvas = canvas * (1 - alpha) + np.array(COLOURS[colour], np.float32) * alpha
        frames[t] = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return frames


def write_video(path: str | Path, frames: np.ndarray, fps: int = FPS) -> None:
    """Write uint8 RGB frames `[T, H, W, 3]` as an H.264 file (4:2:0), whole or not at all."""
    with replacing(Path(path)) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        # x264's macroblock tree reads memory that it has not written: of a hundred equal calls, some made other bytes.
        options = {"crf": "16", "preset": "veryfast", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=Fraction(fps), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the same bytes on every machine
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def scene_for(seed: int, index: int, size: tuple[int, int] = (SIZE, SIZE)) -> Scene:
    """The scene with a given number in the world of a given seed, of a height and width in pixels."""
    return sample_scene(np.random.default_rng([seed, index]), size)
