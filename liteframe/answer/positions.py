"""Positions of what a language model keeps of a stream, and the rotation that they stand for (RoPE)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from liteframe.models.vlm.mrope import Mrope

RESERVE = 1024  # positions that are left for a question and its answer, as in HERMES


@dataclass(frozen=True)
class Keep:
    """Entries of a KV cache keep the positions at which they were read; the stream ends at the model's range."""


@dataclass(frozen=True)
class Compact:
    """Entries of a KV cache are numbered anew, from 0 on and without gaps, when the stream would reach a position.

    Streams without end, for distances that shrink. Keys are rotated in float32, always from where they were made, so
    that nothing drifts (100 rotations of bfloat16 keys, one on another, are off by 3 %).

    Attributes:
        at: the position; None is 1024 before the end of the model's range.
    """

    at: int | None = None


@dataclass(frozen=True)
class Stretch:
    """Positions up to `factor` times the model's range, by YaRN (arXiv 2309.00071); from the start of the stream."""

    factor: float


@dataclass(frozen=True)
class Time:
    """Another rate of positions on the time axis of an M-RoPE: models of the Qwen2.5-VL kind, which count seconds.

    Attributes:
        tokens_per_second: positions a second; 2 in the released Qwen2.5-VL.
    """

    tokens_per_second: float


@dataclass(frozen=True)
class Original:
    """Tokens that a reducer left stand where they stood among all, and so does the text; gaps remain.

    FastVID's authors do so. Else positions are consecutive.
    """


Positions = Keep | Compact | Stretch | Time | Original
# Of what a reducer has left, by name.
OF_REDUCED: dict[str, Positions] = {"packed": Keep(), "original": Original()}


def check_positions(positions: Positions, mrope: Mrope | None, model_type: str, memory: str, of_cache: bool) -> None:
    """Refuse what would have no effect.

    Args:
        positions: of a session.
        mrope: how its language model numbers vision tokens, where it does not count them like words.
        model_type: of its model.
        memory: the name of its memory.
        of_cache: whether that keeps entries of a KV cache.

    Raises:
        ValueError: says why.
    """
    if isinstance(positions, Compact) and not of_cache:
        raise ValueError(
            f"{positions} numbers entries of a KV cache anew, and memory {memory!r} keeps none; leave it out, or take "
            "a memory such as 'sink_window'"
        )
    if isinstance(positions, Compact) and mrope is not None:
        raise ValueError(
            f"{positions} numbers entries on one axis, and those of a {model_type} have three; leave it out: a slot "
            "takes few positions there, or take a memory of tokens, such as 'window'"
        )
    if isinstance(positions, Original) and mrope is not None:
        raise ValueError(
            f"{positions} is for language models that count positions on one axis; those of a {model_type} have three"
        )
    if isinstance(positions, Time) and (mrope is None or mrope.tokens_per_second is None):
        raise ValueError(
            f"{positions} needs a language model whose positions count seconds (M-RoPE of the Qwen2.5-VL kind), which "
            f"that of a {model_type} does not do; use labels='seconds'"
        )


def original_positions(ids: Sequence[int], whole: Sequence[int], placeholder: int, numbers: Sequence[int]) -> list[int]:
    """Where the tokens of a prompt stand in a longer one, with placeholders and lines that are left out.

    Args:
        ids: the prompt.
        whole: the longer one.
        placeholder: token that stands for a feature.
        numbers: of each placeholder of `ids`, its number among those of `whole`.

    Raises:
        ValueError: text of one prompt is not that of the other.
    """
    places = [place for place, token in enumerate(whole) if token == placeholder]
    kept = [places[number] for number in numbers]
    found, gap = list[int](), list[int]()
    before, rest = -1, iter(kept)
    for token in [*ids, placeholder]:  # one more, behind the end
        if token != placeholder:
            gap.append(token)
            continue
        place = next(rest, len(whole))
        if gap:
            found += _text_places(gap, whole, placeholder, before, place)
        found.append(place)
        before, gap = place, []
    return found[:-1]


def _text_places(text: Sequence[int], whole: Sequence[int], placeholder: int, before: int, after: int) -> Iterator[int]:
    """Where text between two kept placeholders stands: a part behind one's frame, the rest ahead of the other's."""
    start, end = before + 1, after
    while start < after and whole[start] == placeholder:
        start += 1
    while end > start and whole[end - 1] == placeholder:
        end -= 1
    for first in range(len(text), -1, -1):
        cut = end - (len(text) - first)
        if list(whole[start : start + first]) == list(text[:first]) and list(whole[cut:end]) == list(text[first:]):
            return iter([*range(start, start + first), *range(cut, end)])
    raise ValueError("the text of the reduced prompt is not that of the whole one: positions cannot be kept")


def rotate(vectors: Tensor, by: Tensor, frequencies: Tensor) -> Tensor:
    """Queries or keys as if they stood `by` positions later.

    Args:
        vectors: [...,n,d], channels c and c + d/2 in pairs.
        by: [n], may be negative; or [n,d/2], where pairs of channels follow different axes.
        frequencies: [d/2], angle a position.

    Returns:
        float32 [...,n,d].
    """
    by = by if by.dim() == 2 else by[:, None]
    angles = by.double() * frequencies.to(by.device).double()  # [n,d/2]
    cos, sin = angles.cos().float(), angles.sin().float()
    one, other = vectors.float().chunk(2, -1)  # [...,n,d/2]
    return torch.cat([one * cos - other * sin, other * cos + one * sin], -1)


def stretched(model: Any, factor: float) -> Any:
    """A Video LLM with the same weights that reads `factor` times as many positions; the given one stays as it is.

    Raises:
        ValueError: the factor is not above 1, or the model's positions are scaled already.
    """
    if not factor > 1:
        raise ValueError(f"Stretch({factor}): a factor above 1 is needed; Keep() leaves positions as they are")
    text = copy.deepcopy(model.config.text_config)
    kind = text.rope_parameters["rope_type"]
    if kind != "default":
        raise ValueError(f"Stretch({factor}): the language model's positions are scaled already ({kind}); use Keep()")
    whole = text.max_position_embeddings
    own = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": whole}
    text.rope_parameters = {**text.rope_parameters, **own}
    text.max_position_embeddings = int(whole * factor)
    plain = model.model.language_model
    rotary = type(plain.rotary_emb)(text).to(model.device)
    language_model = _with(plain, text, rotary_emb=rotary)
    config = copy.copy(model.config)
    config.text_config = text
    return _with(model, config, model=_with(model.model, config, language_model=language_model))


def _with(module: nn.Module, config: Any, **parts: nn.Module) -> Any:
    """The module with other parts; it shares all else."""
    other: Any = copy.copy(module)
    other._modules = {**module._modules, **parts}
    other.config = config
    return other
