"""The strides by which a student compresses on its way, and the modes of an elastic one.

This file travels inside exported models.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

Stride = tuple[int, int, int]


def is_count(value: Any) -> bool:
    """Whether this is a whole number from 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def window_of(downsample: Mapping[int, Stride]) -> Stride:
    """(t,h,w) that the strides after the blocks come to together."""
    t, h, w = 1, 1, 1  # plain arithmetic: torch.compile breaks its graph on math.prod over a generator
    for stride in downsample.values():
        t, h, w = t * stride[0], h * stride[1], w * stride[2]
    return t, h, w


def is_still(frames: int, clip_frames: int) -> bool:
    """Whether a whole video of so many frames is encoded as a still: where clips have one frame, all are alike."""
    return frames == 1 < clip_frames


def of_a_still(downsample: Mapping[int, Stride]) -> dict[int, Stride]:
    """The strides of a student on one frame that stands for endless ones like it: over space alone."""
    return {block: (1, h, w) for block, (_, h, w) in downsample.items()}


def largest(modes: Iterable[Mapping[int, Stride]]) -> dict[int, Stride]:
    """After each block, the largest stride of all modes along each axis."""
    found: dict[int, Stride] = {}
    for downsample in modes:
        for block, (t, h, w) in downsample.items():
            most = found.get(block, (1, 1, 1))
            found[block] = (max(most[0], t), max(most[1], h), max(most[2], w))
    return dict(sorted(found.items()))


def checked_downsample(name: str, downsample: Any, depth: int) -> dict[int, Stride]:
    """{block: (t,h,w)} by rising blocks, of tuples, whatever JSON has made of it.

    Raises:
        ValueError: it is something else, or a block is none of 1..depth; the message begins with `name`.
    """
    if not isinstance(downsample, dict):
        raise ValueError(f"{name} must map block -> (t,h,w), got {downsample!r}")
    checked: dict[int, Stride] = {}
    for block, stride in downsample.items():
        if not str(block).isdecimal() or not 1 <= int(block) <= depth:
            raise ValueError(f"{name} block {block!r} is not within 1..depth={depth}")
        if not isinstance(stride, list | tuple) or len(stride) != 3:
            raise ValueError(f"{name}[{block}] must be (t,h,w), got {stride!r}")
        for value in stride:
            if not is_count(value):
                raise ValueError(f"{name}[{block}] must be an integer >= 1, got {value!r}")
        if math.prod(stride) == 1:
            raise ValueError(f"{name}[{block}] = (1,1,1) compresses nothing; leave it out")
        if int(block) in checked:
            raise ValueError(f"{name} names block {int(block)} twice")
        checked[int(block)] = (stride[0], stride[1], stride[2])
    return dict(sorted(checked.items()))


def checked_modes(given: Any, downsample: dict[int, Stride], depth: int) -> dict[str, dict[int, Stride]]:
    """{name: downsample} from the finest to the coarsest, the student's own among them.

    Where `downsample` has no name among them, it is called after its factor, such as "16x".

    Raises:
        ValueError: a name or a downsample is none, there is nothing to choose, or a stride does not divide the largest
            after its block.
    """
    if not isinstance(given, dict):
        raise ValueError(f"modes must map a name to its downsample, got {given!r}")
    if not given:
        return {}
    modes = {name: checked_downsample(f"modes[{name!r}]", value, depth) for name, value in given.items()}
    if downsample not in modes.values():
        name = f"{math.prod(window_of(downsample))}x"
        if name in modes:
            raise ValueError(
                f"modes[{name!r}] is {modes[name]}, and downsample, of the same factor, is {downsample}: give it a "
                "name among modes"
            )
        modes[name] = downsample
    if len(modes) == 1:
        raise ValueError(f"modes {given} leave nothing to choose; name more than one, or leave them out")
    for name, strides in modes.items():
        if not isinstance(name, str) or not name or name == "auto" or any(mark in name for mark in ",:@+ /."):
            raise ValueError(f"modes: {name!r} cannot be a name; take one such as '32x'")
        if other := next((other for other in modes if other != name and modes[other] == strides), None):
            raise ValueError(f"modes {name!r} and {other!r} are the same, {strides}; leave one out")
    _check_kernels(modes)
    return dict(sorted(modes.items(), key=lambda mode: math.prod(window_of(mode[1]))))


def _check_kernels(modes: dict[str, dict[int, Stride]]) -> None:
    kernels = largest(modes.values())
    for name, strides in modes.items():
        for block, stride in strides.items():
            if any(most % step for most, step in zip(kernels[block], stride, strict=True)):
                raise ValueError(
                    f"modes[{name!r}][{block}] is {stride}, which does not divide {kernels[block]}, the largest stride "
                    "after that block: its kernel is made of that one's sums"
                )
