"""First stage of the toyworld teacher: teach the ViT what and where the shapes are, patch by patch.

Heads that are thrown away afterwards read colour, shape and centre from every patch token, and the set of colours and
shapes on the frame from a sum of the patches weighted by their product with the class token, as contrastive image
encoders pool. The last part gives the class token the meaning that WAP uses: it points at what matters.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liteframe.reduce.wap import weighted_average_pool
from liteframe.toyworld.model import PATCH
from liteframe.toyworld.scenes import COLOURS, FRAMES, SHAPES, SIZE, Scene, coverage, visible_objects

GRID = SIZE // PATCH
COLOUR_NAMES = list(COLOURS)
SHAPE_NAMES = [*SHAPES, "star"]
COVERED = 0.2  # a patch belongs to the front-most object that covers at least this share of it


def owners(scene: Scene) -> np.ndarray:
    """Which object each patch of each frame shows: uint8 `[T, GRID, GRID]`, 0 background, 1 and 2 movers, 3 star."""
    grid = np.zeros((FRAMES, GRID, GRID), np.uint8)
    for frame in range(FRAMES):
        for name, tint, where, radius in visible_objects(scene, frame):
            share = coverage(name, where, radius).reshape(GRID, PATCH, GRID, PATCH).mean(axis=(1, 3))
            grid[frame][share >= COVERED] = 1 + [m.colour for m in (*scene.movers, scene.flash)].index(tint)
    return grid


def patch_labels(scene: Scene, frame: int, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per patch of a frame: colour index, shape index (0 = background, names from 1), and centre of its object.

    Args:
        scene: the scene.
        frame: frame index.
        owner: the frame's row of `owners`, `[GRID, GRID]`.

    Returns:
        int64 `[GRID, GRID]`, int64 `[GRID, GRID]`, float32 `[GRID, GRID, 2]` (centre x, y as a share of the side).
    """
    things = (*scene.movers, scene.flash)
    colours = np.array([0, *(1 + COLOUR_NAMES.index(thing.colour) for thing in things)])
    shapes = np.array([0, *(1 + SHAPE_NAMES.index(m.shape) for m in scene.movers), 1 + SHAPE_NAMES.index("star")])
    centres = [(0.0, 0.0), *(mover.centre(frame) for mover in scene.movers), scene.flash.centre]
    return colours[owner], shapes[owner], np.array(centres, np.float32)[owner] / SIZE


class PatchHeads(nn.Module):
    """Read-outs of stage one: what each patch shows, and what the frame shows through the class token's weights."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.colour = nn.Linear(dim, 1 + len(COLOUR_NAMES))
        self.shape = nn.Linear(dim, 1 + len(SHAPE_NAMES))
        self.centre = nn.Linear(dim, 2)
        self.frame = nn.Linear(dim, len(COLOUR_NAMES) + len(SHAPE_NAMES))

    def losses(self, tokens: Tensor, colour: Tensor, shape: Tensor, centre: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Sum of the four losses for ViT tokens `[N, 1 + GRID * GRID, C]` and labels `[N, GRID, GRID(, 2)]`."""
        cls, patches = tokens[:, 0], tokens[:, 1:]
        read = self.norm(patches)
        inside = (colour > 0).flatten(1)
        balance = torch.where(inside, 1.0, 0.25)
        colour_logits, shape_logits = self.colour(read), self.shape(read)
        colour_loss = F.cross_entropy(colour_logits.transpose(1, 2), colour.flatten(1), reduction="none")
        shape_loss = F.cross_entropy(shape_logits.transpose(1, 2), shape.flatten(1), reduction="none")
        centre_loss = (self.centre(read) - centre.flatten(1, 2)).abs().sum(-1)
        frames = patches[:, None, :, None].float()  # [N,1,GRID*GRID,1,C]
        frame = (1, frames.shape[2], 1)
        pooled = self.norm(weighted_average_pool(frames, query=cls[:, None].float(), kernel=frame).flatten(0, 3))
        seen = [
            F.one_hot(label.flatten(1), 1 + n).amax(1)[:, 1:]
            for label, n in ((colour, len(COLOUR_NAMES)), (shape, len(SHAPE_NAMES)))
        ]
        present = torch.cat(seen, dim=1).float()
        frame_loss = F.binary_cross_entropy_with_logits(self.frame(pooled), present)
        parts = {
            "colour": (colour_loss * balance).sum() / balance.sum(),
            "shape": (shape_loss * balance).sum() / balance.sum(),
            "centre": (centre_loss * inside).sum() / inside.sum().clamp_min(1),
            "frame": frame_loss,
        }
        figures = {name: float(value.detach()) for name, value in parts.items()}
        figures["shape accuracy"] = float((shape_logits.argmax(-1) == shape.flatten(1))[inside].float().mean())
        return parts["colour"] + parts["shape"] + 2 * parts["centre"] + parts["frame"], figures


def frame_batches(
    videos: np.ndarray, scenes: list[Scene], owner: np.ndarray, size: int, seed: int
) -> Iterator[tuple[np.ndarray, Tensor, Tensor, Tensor]]:
    """Endless batches of single frames with labels; frames that show the star are drawn ten times as often.

    Args:
        videos: uint8 `[V, T, H, W, 3]`.
        scenes: the scene of each video.
        owner: `owners` of each scene, `[V, T, GRID, GRID]`.
        size: frames in a batch.
        seed: order of the draw.
    """
    rng = np.random.default_rng(seed)
    while True:
        rows = rng.integers(len(scenes), size=size)
        times = rng.integers(videos.shape[1], size=size)
        star = rng.random(size) < 0.3
        times = np.where(star, [scenes[r].flash.first + rng.integers(3) for r in rows], times)
        labels = [patch_labels(scenes[r], int(t), owner[r, t]) for r, t in zip(rows, times, strict=True)]
        colour, shape, centre = (torch.from_numpy(np.stack(part)) for part in zip(*labels, strict=True))
        yield videos[rows, times], colour, shape, centre
