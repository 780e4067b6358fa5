"""A video with fewer tokens than its Video LLM gives it: what a reducer leaves of them.

The reducer sees the whole video, so its tokens are there when all frames are; a question then waits for them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor
from typing_extensions import override

from liteframe.answer.crops import CropEncoder, parse_crops
from liteframe.answer.frame_encoder import ClipEncoder, EncoderOnTop, FrameEncoder, TowerEncoder, frame_encoder
from liteframe.reduce import reducers
from liteframe.reduce.base import Tokens
from liteframe.reduce.reducer import Reducer
from liteframe.reduce.signals import FrameTower, in_frames, student_signals


class ReducedEncoder(EncoderOnTop):
    """The way of a Video LLM, with a LiteFrame encoder or without, and a reducer on it.

    Args:
        whole: the model's own way.
        reducer: chooses or merges tokens. Of a LiteFrame encoder these are the projected ones, a slot a frame.
        ratio: share of the tokens that is left, in (0, 1].
        tower: of the model, where it has no LiteFrame encoder; None makes one.
        fit: whether a method whose count depends on the video is brought to the budget, see Reducer.

    Attributes:
        space: in which the reducer acts, see Signals.tokens.
    """

    clip_frames = most_frames = sys.maxsize  # a video is one clip

    def __init__(
        self, whole: FrameEncoder, reducer: Reducer, ratio: float, tower: FrameTower | None = None, fit: bool = False
    ) -> None:
        super().__init__(whole)
        self.reducer, self.ratio, self.fit = reducer, ratio, fit
        self._tower = None
        if isinstance(whole, ClipEncoder):
            self._side: int = whole.processor.pixels_per_token
        elif isinstance(whole, TowerEncoder):
            self._tower = FrameTower(whole.model) if tower is None else tower
        self.space = "projected" if self._tower is None else self._tower.space_for(reducer)

    @override
    def tokens(self, pixels: Tensor, first_frame: int) -> Tokens:
        if first_frame:
            raise ValueError(f"a reducer sees a whole video, not what comes after {first_frame} frames of it")
        return self.whole(pixels)

    @override
    def whole(self, pixels: Tensor, ended: Callable[[str], object] = lambda stage: None) -> Tokens:
        """Pixels [T,3,h,w] of a whole video -> tokens.

        Args:
            pixels: of `pixels`.
            ended: is told when a stage has ended: "tower", "signals", "reduction", "projector".

        Raises:
            ValueError: the tower lacks a signal that the reducer needs, or so few tokens cannot be had from so many.
        """
        if self._tower is None:
            shown = self._whole.whole(pixels)
            ended("projector")
            signals = student_signals(shown, (pixels.shape[-2] // self._side, pixels.shape[-1] // self._side))
            reduced = in_frames(self.reducer(signals, signals.budget(self.ratio), fit=self.fit), shown)
            ended("reduction")
            return replace(reduced, shape=shown.shape)
        needs = self.reducer.needs
        seen = self._tower.see(pixels, needs)
        ended("tower")
        grid = self._tower.tokens(seen, self.space)  # [T,h',w',C']
        ended("projector")
        signals = self._tower.signals(seen, grid, needs)
        ended("signals")
        reduced = self.reducer(signals, signals.budget(self.ratio), fit=self.fit)
        ended("reduction")
        projected = self._tower.project(reduced, signals.grid, self.space)
        ended("projector")
        return replace(projected, among=(len(signals.tokens), signals.tokens.shape[1]))


def check_reduction(
    reducer: str | None,
    ratio: float | None,
    fit: bool = False,
    positions: str | None = None,
    crops: str | None = None,
) -> None:
    """Refuse what no reduction is, and no crops: for before the model is loaded.

    Raises:
        ValueError: one is missing, the reducer is unknown, the ratio is not in (0, 1], or crops are no numbers.
    """
    if crops is not None:
        parse_crops(crops)
        if reducer is not None:
            raise ValueError("--crops has a budget of its own: leave out --reducer")
    for option, given in (("--fit", fit), ("--positions", positions)):
        if given and reducer is None:
            raise ValueError(f"{option} is about what a reducer leaves: name one with --reducer")
    if (reducer is None) != (ratio is None):
        raise ValueError("--reducer and --ratio go together: how tokens are made fewer, and the share that is left")
    if reducer is not None and reducer not in reducers:
        raise ValueError(f"--reducer {reducer!r} is unknown; known: {', '.join(reducers)}")
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(f"--ratio {ratio:g}: the share of tokens that is left lies above 0 and is at most 1")


def encoder_with(
    model: Any,
    processor: Any,
    reducer: str | None,
    ratio: float | None,
    fit: bool = False,
    crops: str | None = None,
) -> FrameEncoder:
    """The way of a Video LLM from frames to tokens: as it is, with a reducer of the table on it, or in crops.

    Raises:
        ValueError: of check_reduction, or crops for a model that has no LiteFrame encoder.
    """
    check_reduction(reducer, ratio, fit, crops=crops)
    whole = frame_encoder(model, processor)
    if crops is not None:
        if not isinstance(whole, ClipEncoder):
            raise ValueError("--crops are seen by a LiteFrame encoder: name one with --encoder, or an exported model")
        most, views, total = parse_crops(crops)
        return CropEncoder(whole, most, views, total=total)
    return whole if reducer is None or ratio is None else ReducedEncoder(whole, reducers[reducer], ratio, fit=fit)
