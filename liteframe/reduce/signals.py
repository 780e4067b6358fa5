"""Signals of a video: from a Video LLM's tower, part by part so that each can be timed, or from a student's tokens.

Shapes: F frames of HxW pixels, (h,w) the tower's patch grid, (h',w') the grid of the reducer's space with n tokens,
C channels, D of the language model.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from liteframe.models.teacher.saliency import attention_received
from liteframe.models.vlm.family import family_of
from liteframe.models.vlm.tower_steps import FRAMES_AT_ONCE, TowerSteps
from liteframe.reduce.base import Signals, Tokens
from liteframe.reduce.reducer import Reducer

ALL_SIGNALS = frozenset({"saliency", "keys", "glob"})
MEAN_TOKEN = "the global vector of a frame is its mean token: the tower has neither a cls token nor a pooling head"
RECEIVED = "saliency is what a token receives of the last used block's attention, over heads and queries"


@dataclass(frozen=True)
class Seen:
    """What the tower gave of a video.

    Attributes:
        patches: [F,h,w,C], what the language model's tokens are made of.
        cls: [F,C], or None for a tower without such a token.
        queries: [F,1 or N,heads*d] of the last used block, the cls token's alone where there is one; None unless kept.
        keys: [F,N,heads*d] of the same block, all N tokens of the tower; None unless kept.
    """

    patches: Tensor
    cls: Tensor | None
    queries: Tensor | None
    keys: Tensor | None


class FrameTower:
    """The vision tower and projector of a transformers Video LLM whose tower sees each frame by itself.

    A reduced video is `see`, `tokens`, `signals`, the reducer, `project`, in this order.

    Args:
        model: of a known family (liteframe/models/vlm/family.py), without a LiteFrame encoder.

    Attributes:
        spaces: in which reducers can act here, see Signals.tokens.

    Raises:
        ValueError: reducers cannot act in this model, or its projector reads another layer than the last.
    """

    def __init__(self, model: Any):
        kind, layer = model.config.model_type, getattr(model.config, "vision_feature_layer", -1)
        steps = None if kind.startswith("liteframe_") else family_of(kind).steps
        if steps is None:
            raise ValueError(f"reducers do not act in a {kind}: its tower does not see each frame by itself")
        if layer != -1:
            raise ValueError(f"this {kind} feeds its projector from layer {layer} of the tower; only -1 is supported")
        self.model, self.steps = model, steps
        self.spaces = ("patch", "shuffled", "projected") if steps.merge else ("projected",)
        self.heads = steps.last_attention(model).heads

    def space_for(self, reducer: Reducer) -> str:
        """Where a reducer acts here: in its own space, or on the projected tokens of a model that has no such space."""
        return reducer.space if reducer.space in self.spaces else "projected"

    @torch.no_grad()
    def see(self, pixels: Tensor, needs: Collection[str] = ALL_SIGNALS) -> Seen:
        """Run the tower.

        Args:
            pixels: [F,3,H,W], normalized, on the model's device.
            needs: signals that will be asked for; "saliency" and "keys" keep queries and keys of one block.
        """
        chunks = [_see(self.model, self.steps, chunk, needs) for chunk in pixels.split(FRAMES_AT_ONCE)]
        return Seen(
            torch.cat([chunk.patches for chunk in chunks]),
            *(_cat([getattr(chunk, name) for chunk in chunks]) for name in ("cls", "queries", "keys")),
        )

    @torch.no_grad()
    def tokens(self, seen: Seen, space: str) -> Tensor:
        """The video as a grid in a reducer's space, [F,h',w',C'].

        Raises:
            ValueError: this model has no such space.
        """
        self._check(space)
        if space == "patch":
            return seen.patches
        merged = self._merged(seen.patches)
        return merged if space == "shuffled" else self.steps.project(self.model, merged)

    @torch.no_grad()
    def signals(self, seen: Seen, tokens: Tensor, needs: Collection[str] = ALL_SIGNALS) -> Signals:
        """What reducers go by, with the tokens.

        Args:
            seen: of `see`, with the same needs.
            tokens: [F,h',w',C'] of `tokens`.
            needs: of "saliency", "keys" and "glob", those to compute; float32 (float64 stays).
        """
        saliency = keys = glob = None
        notes = []
        if {"saliency", "keys"} & set(needs) and seen.keys is None:
            raise ValueError("queries and keys were not kept: name saliency or keys in `see` too")
        if "saliency" in needs and seen.queries is not None and seen.keys is not None:
            queries, all_keys = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (seen.queries, seen.keys))
            received = attention_received(queries, all_keys)  # [F,N]
            of_tokens = self._pooled(seen, received[..., None], tokens)[..., 0]  # [F,n]
            saliency = of_tokens / of_tokens.sum(1, keepdim=True)
            notes += [] if self.steps.cls else [RECEIVED]
        if "keys" in needs and seen.keys is not None:
            of_heads = _single(seen.keys).unflatten(-1, (self.heads, -1))  # [F,N,heads,d]
            keys = self._pooled(seen, of_heads.mean(-2), tokens)  # [F,n,d]
        if "glob" in needs:
            glob = _single(tokens).mean((1, 2)) if seen.cls is None else seen.cls  # [F,C]
            notes += [MEAN_TOKEN] if seen.cls is None else []
        return Signals(tokens.flatten(1, 2), (tokens.shape[1], tokens.shape[2]), saliency, keys, glob, tuple(notes))

    @torch.no_grad()
    def project(self, reduced: Tokens, grid: tuple[int, int], space: str) -> Tokens:
        """Bring what a reducer left into the language model's space, [M,D].

        Args:
            reduced: its result; in "patch" a grid, of which several tokens become one.
            grid: (h',w') of the signals that it acted on.
            space: in which it acted.
        """
        self._check(space)
        if space == "projected":
            return reduced
        if space == "shuffled":
            return replace(reduced, tokens=self.steps.project(self.model, reduced.tokens))
        count = reduced.slots[0][2]
        rows = (reduced.place[:count] // grid[1]).unique().numel()
        as_grid = (len(reduced.slots), rows, count // rows)
        merged = self._merged(reduced.tokens.unflatten(0, as_grid))  # [S,h'',w'',C']
        factor = rows // merged.shape[1]
        size = reduced.size.view(as_grid).unflatten(2, (-1, factor)).unflatten(1, (-1, factor)).sum((2, 4))
        first = reduced.place.view(as_grid)[:, ::factor, ::factor]  # of the patches that become one token
        place = first // grid[1] // factor * (grid[1] // factor) + first % grid[1] // factor
        n = merged.shape[1] * merged.shape[2]
        return Tokens(
            self.steps.project(self.model, merged).flatten(0, 2),
            reduced.frame.view(len(reduced.slots), count)[:, :n].flatten(),
            place.flatten(),
            size.flatten(),
            [(begin, end, n) for begin, end, _ in reduced.slots],
        )

    def _check(self, space: str) -> None:
        if space not in self.spaces:
            kind = self.model.config.model_type
            raise ValueError(f"a {kind} has no space {space!r} for reducers; there is {', '.join(self.spaces)}")

    def _merged(self, patches: Tensor) -> Tensor:
        return patches if self.steps.merge is None else self.steps.merge(self.model, patches)

    def _pooled(self, seen: Seen, of_tower: Tensor, tokens: Tensor) -> Tensor:
        """Numbers of the tower's tokens [F,N,c] as numbers of the reducer's [F,n,c]."""
        patches = of_tower[:, self.steps.cls :].unflatten(1, seen.patches.shape[1:3])  # [F,h,w,c]
        pooled = patches if patches.shape[1:3] == tokens.shape[1:3] else self.steps.pool(self.model, patches)
        return pooled.flatten(1, 2)


def _cat(parts: list[Tensor | None]) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return torch.cat(given) if given else None


def _single(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _see(model: Any, steps: TowerSteps, pixels: Tensor, needs: Collection[str]) -> Seen:
    kept = dict[str, Tensor]()
    attention = steps.last_attention(model)

    def keep(name: str, module: nn.Module, only: slice) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            kept[name] = output[:, only].clone()  # of the cls token alone, not a view of all

        return module.register_forward_hook(hook)

    with ExitStack() as hooks:
        if "saliency" in needs:
            handle = keep("queries", attention.queries, slice(0, 1) if steps.cls else slice(None))
            hooks.callback(handle.remove)
        if {"saliency", "keys"} & set(needs):
            hooks.callback(keep("keys", attention.keys, slice(None)).remove)
        states = steps.states(model, pixels)  # [f,cls+h*w,C]
    patch = model.config.vision_config.patch_size
    rows, columns = (pixels.shape[side] // (patch if isinstance(patch, int) else patch[side - 2]) for side in (2, 3))
    patches = states[:, steps.cls :].unflatten(1, (rows, columns))
    return Seen(patches, states[:, 0] if steps.cls else None, kept.get("queries"), kept.get("keys"))


def student_signals(shown: Tokens, grid: tuple[int, int]) -> Signals:
    """A student's tokens as a video of one frame a slot, with no other signal: a reducer that needs one raises.

    Args:
        shown: a video as the student gave it, in the language model's space.
        grid: (h',w') of each slot's tokens.

    Raises:
        ValueError: the slots do not all hold such a grid.
    """
    counts = {count for _, _, count in shown.slots}
    if counts != {grid[0] * grid[1]}:
        raise ValueError(f"slots of {sorted(counts)} tokens are not grids of {grid[0]}x{grid[1]}")
    return Signals(shown.tokens.unflatten(0, (len(shown.slots), -1)), grid)


def in_frames(reduced: Tokens, shown: Tokens) -> Tokens:
    """What a reducer left of `student_signals(shown)`, filed under the video's frames instead of its slots."""
    first = torch.tensor([begin for begin, _, _ in shown.slots], device=reduced.frame.device)
    members = shown.size[:: shown.slots[0][2]].to(reduced.size)  # [S], patches that became a token of each slot
    return replace(
        reduced,
        frame=first[reduced.frame],
        size=reduced.size * members[reduced.frame],
        slots=[(shown.slots[begin][0], shown.slots[end][1], count) for begin, end, count in reduced.slots],
    )
