"""What a reducer takes and what it gives: a video's tokens with their signals, and fewer tokens with their places.

Shapes: F frames, n = h * w tokens a frame, M tokens of a video, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Window = tuple[int, int, int]


@dataclass(frozen=True)
class Tokens:
    """What a language model reads of a video, in the order in which it reads it; a grid is the regular case.

    Attributes:
        tokens: [M,C].
        frame: int64 [M], the frame, or the first frame of the slot, that a token is filed under; non-decreasing.
        place: int64 [M], raster index in that frame's grid; -1 for a token without a place.
        size: float32 [M], how many tokens became this one; 1 is an untouched one.
        slots: first frame, last frame and number of tokens of each line of the prompt, frames from 0 on.
    """

    tokens: Tensor
    frame: Tensor
    place: Tensor
    size: Tensor
    slots: Sequence[tuple[int, int, int]]

    def __post_init__(self) -> None:
        """Refuse what no prompt could be written for."""
        count = self.tokens.shape[0]
        shapes = {name: tuple(getattr(self, name).shape) for name in ("frame", "place", "size")}
        if self.tokens.ndim != 2 or set(shapes.values()) != {(count,)}:
            raise ValueError(f"tokens {list(self.tokens.shape)} need one frame, place and size each, got {shapes}")
        if sum(tokens for _, _, tokens in self.slots) != count:
            raise ValueError(f"the slots {list(self.slots)} do not hold {count} tokens")

    @classmethod
    def grid(cls, features: Tensor, frames: int, window: Window = (4, 2, 2)) -> Tokens:
        """The tokens of a grid that a student or a pooling has made.

        Args:
            features: [T',h,w,C], T' = ceil(frames / t).
            frames: of the video, without those that fill the last slot.
            window: (t,h,w) of what became one token.

        Raises:
            ValueError: the grid is not that of so many frames.
        """
        (slots, rows, columns, _), (t, h, w) = features.shape, window
        if slots != -(-frames // t):
            raise ValueError(f"{frames} frames in slots of {t} are {-(-frames // t)} slots, the features have {slots}")
        n, device = rows * columns, features.device
        first = torch.arange(0, frames, t, device=device)  # [T']
        real = (frames - first).clamp_max(t)
        row = torch.arange(rows, device=device) * h + (h - 1) // 2
        column = torch.arange(columns, device=device) * w + (w - 1) // 2
        center = row[:, None] * (columns * w) + column  # [h,w], in the grid before pooling
        lines = zip(first.tolist(), (first + real - 1).tolist(), strict=True)
        return cls(
            features.flatten(0, 2),  # [T'*h*w,C]
            first.repeat_interleave(n),
            center.flatten().repeat(slots),
            (real * h * w).float().repeat_interleave(n),
            [(begin, end, n) for begin, end in lines],
        )


@dataclass(frozen=True)
class Signals:
    """A video's tokens and what a reducer may go by, computed once for all reducers of a run.

    Attributes:
        tokens: [F,n,C] in the reducer's space: "patch" (the tower's grid), "shuffled" (before the projector) or
            "projected".
        grid: (h,w) with n = h * w.
        saliency: [F,n], sums to 1 in each frame.
        keys: [F,n,d], mean over heads of the keys of the tower's last block.
        glob: [F,C'], one vector a frame: the cls token where there is one.
    """

    tokens: Tensor
    grid: tuple[int, int]
    saliency: Tensor | None = None
    keys: Tensor | None = None
    glob: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse signals that are not those of the tokens."""
        if self.tokens.ndim != 3 or 0 in self.tokens.shape or self.tokens.shape[1] != self.grid[0] * self.grid[1]:
            raise ValueError(f"tokens are {list(self.tokens.shape)}; expected [F,n,C] with n = {self.grid} and F >= 1")
        sizes = {"saliency": self.tokens.shape[:2], "keys": self.tokens.shape[:2], "glob": self.tokens.shape[:1]}
        for name, size in sizes.items():
            signal: Tensor | None = getattr(self, name)
            if signal is not None and signal.shape[: len(size)] != size:
                raise ValueError(f"{name} is {list(signal.shape)}, but the tokens are {list(self.tokens.shape)}")

    def require(self, *names: str) -> None:
        """Make sure that these signals are there.

        Raises:
            ValueError: one is missing; nothing is put in its place.
        """
        if missing := [name for name in names if getattr(self, name) is None]:
            raise ValueError(f"this reducer goes by {' and '.join(missing)}, which this vision tower does not give")

    @property
    def features(self) -> Tensor:
        """Tokens as a grid, [F,h,w,C]."""
        return self.tokens.unflatten(1, self.grid)


class Reducer(Protocol):
    """A pure function from a video's signals to fewer tokens; float32 inside, without any randomness."""

    @property
    def needs(self) -> frozenset[str]:
        """Of "saliency", "keys" and "glob", those that it goes by."""

    @property
    def space(self) -> str:
        """Where its authors let it act, see Signals.tokens."""

    @property
    def exact(self) -> bool:
        """Whether as many tokens come out as the budget says."""

    def __call__(self, signals: Signals, budget: int) -> Tokens:
        """Reduce a video to about `budget` tokens.

        Raises:
            ValueError: a signal is missing, or so few tokens cannot be had from so many.
        """


def check_window(signals: Signals, window: Window, budget: int) -> None:
    """Make sure that pooling windows reaches a budget; the last window of a video need not be full.

    Raises:
        ValueError: the window does not divide the grid, or leaves more tokens than the budget allows.
    """
    frames, (t, h, w) = len(signals.tokens), window
    if signals.grid[0] % h or signals.grid[1] % w:
        raise ValueError(f"windows of {h}x{w} do not divide a grid of {signals.grid[0]}x{signals.grid[1]}")
    whole = frames * signals.tokens.shape[1] // (t * h * w)
    if budget < whole:
        raise ValueError(f"pooling in windows of {t}x{h}x{w} leaves {whole} tokens, more than the budget of {budget}")
