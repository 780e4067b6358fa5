"""What a reducer takes and what it gives: a video's tokens with their signals, and fewer tokens with their places.

Shapes: F frames, n = h * w tokens a frame, M tokens of a video, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

Window: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class Tokens:
    """What a language model reads of a video, in the order in which it reads it; a grid is the regular case.

    Attributes:
        tokens: [M,C].
        frame: int64 [M], the frame, or the first frame of the slot, that a token is filed under; non-decreasing.
        place: int64 [M], raster index in that frame's grid; -1 for a token without a place.
        size: float32 [M], how many tokens became this one; 1 is an untouched one.
        slots: first frame, last frame and number of tokens of each line of the prompt, frames from 0 on.
        times: seconds of the first and the last frame of each slot, where they are known.
        shape: rows and columns of the grid that places are indices of, where it is known and one for all.
        among: frames, and tokens of each, of the video that a reducer has chosen from; None without one.
    """

    tokens: Tensor
    frame: Tensor
    place: Tensor
    size: Tensor
    slots: Sequence[tuple[int, int, int]]
    times: Sequence[tuple[float, float]] | None = None
    shape: tuple[int, int] | None = None
    among: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Refuse what no prompt could be written for."""
        count = self.tokens.shape[0]
        shapes = {name: tuple(getattr(self, name).shape) for name in ("frame", "place", "size")}
        if self.tokens.ndim != 2 or set(shapes.values()) != {(count,)}:
            raise ValueError(f"tokens {list(self.tokens.shape)} need one frame, place and size each, got {shapes}")
        if sum(tokens for _, _, tokens in self.slots) != count:
            raise ValueError(f"the slots {list(self.slots)} do not hold {count} tokens")
        if self.times is not None and len(self.times) != len(self.slots):
            raise ValueError(f"{len(self.slots)} slots need as many times, got {len(self.times)}")

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

    @classmethod
    def by_frame(cls, tokens: Tensor, frame: Tensor, place: Tensor, size: Tensor) -> Tokens:
        """Tokens with a line of the prompt for each frame that some are filed under; shapes as the attributes'."""
        counts = enumerate(frame.bincount().tolist())
        return cls(tokens, frame, place, size.float(), [(number, number, count) for number, count in counts if count])

    @classmethod
    def kept(cls, signals: Signals, keep: Tensor) -> Tokens:
        """A video's own tokens, untouched and in raster order, where keep bool [F,n] says so."""
        frame, place = keep.nonzero(as_tuple=True)
        tokens = signals.tokens[frame, place]
        return cls.by_frame(tokens, frame, place, torch.ones_like(frame))

    def in_raster_order(self) -> Tokens:
        """The same tokens by frame and place, those without a place last in their frame."""
        last = self.place.amax() + 1 if len(self.place) else 0
        place = torch.where(self.place < 0, last, self.place)
        order = (self.frame * (last + 1) + place).argsort(stable=True)
        return replace(
            self, tokens=self.tokens[order], frame=self.frame[order], place=self.place[order], size=self.size[order]
        )


def join_tokens(parts: Sequence[Tokens]) -> Tokens:
    """Tokens of parts of a video, one after another; at least one part. Times are there if all parts have them."""
    tokens, frame, place, size = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("tokens", "frame", "place", "size")
    )
    times = [time for part in parts for time in part.times or ()]
    slots = [slot for part in parts for slot in part.slots]
    shapes = {part.shape for part in parts}
    shape = shapes.pop() if len(shapes) == 1 else None
    return Tokens(tokens, frame, place, size, slots, times if len(times) == len(slots) else None, shape)


def mean_at(tokens: Tensor, sizes: Tensor) -> Tensor:
    """The mean of slots at each place, weighted by sizes, in float32: [S,N,C] and [S,N] -> [N,C]."""
    weights = (sizes / sizes.sum(0)).to(tokens.device)[..., None]
    return (tokens.float() * weights).sum(0).to(tokens.dtype)


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
        notes: what a reader of results should know of them, such as what stands in for a cls token.
    """

    tokens: Tensor
    grid: tuple[int, int]
    saliency: Tensor | None = None
    keys: Tensor | None = None
    glob: Tensor | None = None
    notes: tuple[str, ...] = ()

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

    @property
    def count(self) -> int:
        """Tokens of the video, F * n."""
        return self.tokens.shape[0] * self.tokens.shape[1]

    def budget(self, ratio: float) -> int:
        """Tokens that a ratio leaves of the video, floor(F * n * ratio).

        Raises:
            ValueError: the ratio is not in (0,1], or leaves nothing.
        """
        if not 0 < ratio <= 1:
            raise ValueError(f"a ratio of tokens to keep is above 0 and at most 1, got {ratio}")
        # 100 * 0.29 is 28.999999999999996.
        if (budget := int(self.count * ratio + 1e-9)) < 1:
            raise ValueError(f"a ratio of {ratio} leaves none of {self.count} tokens")
        return budget

    def tokens_per_frame(self, budget: int) -> int:
        """What a budget for the video is for each frame, floor(budget / F).

        Raises:
            ValueError: it is less than one token.
        """
        if budget < (frames := len(self.tokens)):
            raise ValueError(f"a budget of {budget} tokens is less than one for each of {frames} frames")
        return budget // frames

    def in_float32(self) -> Signals:
        """The same with every tensor in float32; float64 stays."""
        names = ("tokens", "saliency", "keys", "glob")
        given = {name: tensor for name in names if (tensor := getattr(self, name)) is not None}
        return replace(self, **{name: x if x.dtype == torch.float64 else x.float() for name, x in given.items()})
