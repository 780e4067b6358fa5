"""What is compared: the dense Video LLM, the same without video, reducers on it, a LiteFrame encoder, and both."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from liteframe.answer.frame_encoder import frame_encoder
from liteframe.answer.reduced_encoder import ReducedEncoder
from liteframe.evaluate.asking import System
from liteframe.reduce import reducers
from liteframe.reduce.signals import ALL_SIGNALS, FrameTower, Seen

NONE, BLIND, LITEFRAME = "none", "blind", "liteframe"


@dataclass(frozen=True)
class SystemName:
    """A system as the command line has it: `none`, `blind`, `liteframe`, `REDUCER@RATIO`, `liteframe+REDUCER@RATIO`.

    Attributes:
        base: "none", "blind" or "liteframe"; a reducer alone acts on "none".
        reducer: of the table, or None.
        ratio: share of the base's tokens that the reducer leaves.
        mode: of an elastic LiteFrame encoder: `liteframe@32x`, `liteframe@auto:4096`.
    """

    base: str
    reducer: str | None = None
    ratio: float | None = None
    mode: str | None = None

    @property
    def student(self) -> bool:
        """Whether it has the LiteFrame encoder, and the adapter."""
        return self.base == LITEFRAME

    def __str__(self) -> str:
        base = self.base if self.mode is None else f"{self.base}@{self.mode}"
        if self.reducer is None:
            return base
        return f"{f'{base}+' if self.student else ''}{self.reducer}@{self.ratio:g}"

    @property
    def label(self) -> str:
        """For people: ratios as fractions, `fastvid 1/16`."""
        base = self.base if self.mode is None else f"{self.base} {self.mode}"
        if self.reducer is None or self.ratio is None:
            return base
        share = Fraction(self.ratio).limit_denominator(1024)
        exact = abs(share - self.ratio) < 1e-6 and share.numerator == 1
        return f"{f'{base} + ' if self.student else ''}{self.reducer} {share if exact else f'{self.ratio:g}'}"


def parse_systems(
    names: Sequence[str] | None, ratios: Sequence[float], *, student: bool, modes: Sequence[str] = ()
) -> list[SystemName]:
    """Systems of a comparison, `none` and `blind` first, each once.

    Args:
        names: of the command line; a reducer without `@RATIO` is taken at each of `ratios`. None: every reducer, and
            `liteframe` where there is one.
        ratios: shares of tokens.
        student: whether there is a LiteFrame encoder.
        modes: of an elastic encoder, each of which `liteframe` is taken in; none: its own.

    Raises:
        ValueError: an unknown name, a ratio that is none, or no LiteFrame encoder for a system that needs it.
    """
    for ratio in ratios:
        _check(ratio, "--ratios")
    if names is None:
        names = [*reducers, *([LITEFRAME] if student else [])]
    systems = [SystemName(NONE), SystemName(BLIND)]
    for name in names:
        systems += _parse(name.strip(), ratios)
    if not student and (lacking := [str(system) for system in systems if system.student]):
        raise ValueError(f"--systems {lacking[0]}: needs the LiteFrame encoder that --encoder names")
    in_modes = [
        replace(system, mode=mode) for system in systems for mode in (modes if system.student and modes else [None])
    ]
    return list(dict.fromkeys(in_modes))


def _parse(name: str, ratios: Sequence[float]) -> list[SystemName]:
    given, at, share = name.partition("@")
    base, reducer = (LITEFRAME, given.removeprefix("liteframe+")) if given.startswith("liteframe+") else (NONE, given)
    if given in (NONE, BLIND, LITEFRAME):
        if at:
            raise ValueError(f"--systems {name!r}: {given} has no ratio; leave out @{share}")
        return [SystemName(given)]
    if reducer not in reducers:
        known = ", ".join((NONE, BLIND, LITEFRAME, *reducers))
        raise ValueError(
            f"--systems {name!r} is unknown; known: {known}, liteframe+REDUCER; a REDUCER also with @RATIO"
        )
    if not at:
        return [SystemName(base, reducer, ratio) for ratio in ratios]
    try:
        ratio = float(share)
    except ValueError:
        raise ValueError(f"--systems {name!r}: {share!r} is no ratio; write {reducer}@0.25") from None
    _check(ratio, f"--systems {name!r}")
    return [SystemName(base, reducer, ratio)]


def _check(ratio: float, where: str) -> None:
    if not 0 < ratio <= 1:
        raise ValueError(f"{where}: a ratio of {ratio:g}; the share of tokens that is left is above 0 and at most 1")


class RememberingTower(FrameTower):
    """A tower that sees a video once for all reducers of a comparison, with all signals that it has."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._last: tuple[Tensor, Seen] | None = None

    @override
    def see(self, pixels: Tensor, needs: Collection[str] = ALL_SIGNALS) -> Seen:
        if self._last is None or self._last[0].shape != pixels.shape or not torch.equal(self._last[0], pixels):
            self._last = None  # its memory is free before the next is there
            self._last = (pixels, super().see(pixels, ALL_SIGNALS))
        return self._last[1]


def build_systems(
    names: Sequence[SystemName], model: Any, processor: Any, *, remember: bool, fit: bool, positions: str
) -> tuple[dict[str, System], dict[str, Exception]]:
    """Systems of one model by name, and why others cannot be.

    Args:
        names: all of them with a LiteFrame encoder, or none.
        model: of `load_video_llm`, on its device.
        processor: of `load_video_llm`.
        remember: whether the tower sees a video once for all; not where each is timed.
        fit: see ReducedEncoder.
        positions: see System.
    """
    whole = frame_encoder(model, processor)
    systems, failures = dict[str, System](), dict[str, Exception]()
    tower: FrameTower | None = None
    for name in names:
        try:
            if name.reducer is None or name.ratio is None:
                systems[str(name)] = System(model, processor, whole, blind=name.base == BLIND)
                continue
            if tower is None and not name.student:
                tower = RememberingTower(model) if remember else FrameTower(model)
            encoder = ReducedEncoder(whole, reducers[name.reducer], name.ratio, tower, fit)
            systems[str(name)] = System(model, processor, encoder, positions=positions)
        except ValueError as error:
            failures[str(name)] = error
    return systems, failures


def space_of(name: SystemName, model: Any) -> str | None:
    """Where a system's reducer acts in a Video LLM, see Signals.tokens; None without one, or where it cannot."""
    if name.reducer is None or name.student:
        return None if name.reducer is None else "projected"
    try:
        return FrameTower(model).space_for(reducers[name.reducer])
    except ValueError:
        return None
