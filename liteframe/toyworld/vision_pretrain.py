"""First stage of the toyworld teacher: teach the ViT what and where the shapes are, patch by patch.

Heads that are thrown away afterwards read colour, shape and centre from every patch token, and the set of colours and
shapes on the frame from a sum of the patches weighted by their product with the class token, as contrastive image
encoders pool. The last part gives the class token the meaning that WAP uses: it points at what matters. Without a class
token the patches weigh alike. What a tower sees together, a frame or a pair of frames, is a *view* of f frames here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
APART = (1, 2, 4, 8)  # frames between the two of a pair
COVERED = 0.2  # a patch belongs to the front-most object that covers at least this share of it


def owners(scene: Scene) -> np.ndarray:
    """Which object each patch of each frame shows: uint8 `[T, GRID, GRID]`, 0 background, 1 and 2 movers, 3 star."""
    grid = np.zeros((FRAMES, GRID, GRID), np.uint8)
    for frame in range(FRAMES):
        for name, tint, where, radius in visible_objects(scene, frame):
            share = coverage(name, where, radius).reshape(GRID, PATCH, GRID, PATCH).mean(axis=(1, 3))
            grid[frame][share >= COVERED] = 1 + [m.colour for m in (*scene.movers, scene.flash)].index(tint)
    return grid


def patch_labels(scene: Scene, frames: Sequence[int], owner: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per patch of a view: colour index, shape index (0 = background, names from 1), and centres of its object.

    Args:
        scene: the scene.
        frames: indices of the view's frames.
        owner: rows of `owners` of these, `[f, GRID, GRID]`; a patch shows the front-most of what it shows in them.

    Returns:
        int64 `[GRID, GRID]`, int64 `[GRID, GRID]`, float32 `[GRID, GRID, 2 * f]` (centre x, y as a share of the side,
        frame by frame).
    """
    things = (*scene.movers, scene.flash)
    colours = np.array([0, *(1 + COLOUR_NAMES.index(thing.colour) for thing in things)])
    shapes = np.array([0, *(1 + SHAPE_NAMES.index(m.shape) for m in scene.movers), 1 + SHAPE_NAMES.index("star")])
    nothing = np.zeros((1, 2 * len(frames)), np.float32)
    ways = [[mover.centre(frame) for frame in frames] for mover in scene.movers]
    centres = np.array([*ways, [scene.flash.centre] * len(frames)], np.float32).reshape(len(things), -1)  # [3,2*f]
    front = owner.max(axis=0)  # [GRID,GRID]
    return colours[front], shapes[front], np.concatenate([nothing, centres])[front] / SIZE


class PatchHeads(nn.Module):
    """Read-outs of stage one: what each patch shows, and what the view shows through the class token's weights.

    Args:
        dim: channels of a patch token.
        frames: of a view.
    """

    def __init__(self, dim: int, frames: int = 1) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.colour = nn.Linear(dim, 1 + len(COLOUR_NAMES))
        self.shape = nn.Linear(dim, 1 + len(SHAPE_NAMES))
        self.centre = nn.Linear(dim, 2 * frames)
        self.frame = nn.Linear(dim, len(COLOUR_NAMES) + len(SHAPE_NAMES))

    def losses(
        self, patches: Tensor, query: Tensor | None, colour: Tensor, shape: Tensor, centre: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Sum of the four losses.

        Args:
            patches: float32 `[N, GRID, GRID, C]`.
            query: class token of each view `[N, C]`, or None where the tower has none.
            colour: `[N, GRID, GRID]`, as of `patch_labels`, as are the others.
            shape: `[N, GRID, GRID]`.
            centre: `[N, GRID, GRID, 2 * f]`.
        """
        read = self.norm(patches.flatten(1, 2))
        inside = (colour > 0).flatten(1)
        balance = torch.where(inside, 1.0, 0.25)
        colour_logits, shape_logits = self.colour(read), self.shape(read)
        colour_loss = F.cross_entropy(colour_logits.transpose(1, 2), colour.flatten(1), reduction="none")
        shape_loss = F.cross_entropy(shape_logits.transpose(1, 2), shape.flatten(1), reduction="none")
        centre_loss = 2 * (self.centre(read) - centre.flatten(1, 2)).abs().mean(-1)
        view = patches[:, None]  # [N,1,GRID,GRID,C]
        weigh_by = None if query is None else query[:, None]
        whole = (1, *patches.shape[1:3])
        pooled = self.norm(weighted_average_pool(view, query=weigh_by, kernel=whole).flatten(0, 3))
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


def view_batches(
    videos: np.ndarray, scenes: list[Scene], owner: np.ndarray, size: int, seed: int, frames: int = 1
) -> Iterator[tuple[np.ndarray, Tensor, Tensor, Tensor]]:
    """Endless batches of single views with labels; views that show the star are drawn ten times as often.

    Args:
        videos: uint8 `[V, T, H, W, 3]`.
        scenes: the scene of each video.
        owner: `owners` of each scene, `[V, T, GRID, GRID]`.
        size: views in a batch.
        seed: order of the draw.
        frames: of a view; they lie as far apart as readings of 8 to 64 frames of a video take them.

    Yields:
        uint8 `[size, frames, H, W, 3]`, and what `patch_labels` says of them.
    """
    rng = np.random.default_rng(seed)
    while True:
        rows = rng.integers(len(scenes), size=size)
        times = rng.integers(videos.shape[1], size=size)
        star = rng.random(size) < 0.3
        times = np.where(star, [scenes[r].flash.first + rng.integers(3) for r in rows], times)
        apart = rng.choice(APART, size=size)
        which = np.where(star, rng.integers(frames, size=size), 0)  # of the view's frames shows the star
        view = times[:, None] + apart[:, None] * (np.arange(frames) - which[:, None])  # [size,frames]
        view = view.clip(0, videos.shape[1] - 1)
        labels = [patch_labels(scenes[r], t, owner[r, t]) for r, t in zip(rows, view, strict=True)]
        colour, shape, centre = (torch.from_numpy(np.stack(part)) for part in zip(*labels, strict=True))
        yield videos[rows[:, None], view], colour, shape, centre
