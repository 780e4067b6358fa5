"""What a language model has read, as the keys and values of its layers, of which some can be forgotten.

transformers keeps keys after rotation and takes positions from the number of entries, so positions are kept here and
always passed. All layers must hold equally many entries; which ones may differ.

Shapes: L layers, H key-value heads, n entries, d channels a head, D channels of the model.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from liteframe.answer.positions import RESERVE, Compact, Positions, rotate
from liteframe.answer.prefill import cache_name, fork_cache
from liteframe.models.vlm.attention import FULL, causal_in_parts
from liteframe.models.vlm.mrope import Mrope, Reached

# Kinds of entries: before the video, around a slot, of a slot, merged ones or summaries of several.
TEXT, LABEL, VIDEO, PROTOTYPE = range(4)
FIELDS = ("positions", "kind", "slot", "place", "made_at")


class KeyValues:
    """Entries of a KV cache in the order in which they were read, and what each is.

    Args:
        model: a Video LLM.
        policy: what becomes of positions.
        mrope: how its language model numbers vision tokens, where it does not count them like words.

    Attributes:
        cache: keys and values [1,H,n,d] of each layer, as transformers reads them.
        positions: int64 [L,n], ascending; where positions have three axes, numbers in the order of reading.
        axes: int64 [3,L,n], positions on these axes, where they have three.
        kind: int64 [L,n], of TEXT, LABEL, VIDEO, PROTOTYPE.
        slot: int64 [L,n], number of the slot in the stream, -1 for text before the video.
        place: int64 [L,n], of a token in its slot, -1 for all else.
        next: position of what is read next, as `positions` counts.
        reached: where on three axes that is.
        made, made_at: keys float [1,H,n,d] of each layer as they were made, and int64 [L,n] where.
    """

    def __init__(self, model: Any, policy: Positions, mrope: Mrope | None = None) -> None:
        self.model, self.policy, self.mrope = model, policy, mrope
        self.language_model = model.model.language_model
        text = model.config.text_config
        self.limit: int = text.max_position_embeddings
        self.cache = DynamicCache(config=text)
        empty = torch.empty(text.num_hidden_layers, 0, dtype=torch.long, device=model.device)
        self.positions = self.kind = self.slot = self.place = self.made_at = empty
        self.made: list[Tensor] | None = None  # None: what the cache holds
        self.next, self.reached = 0, Reached()
        self.axes: Tensor | None = None
        if mrope is not None:
            self.axes = empty.expand(3, -1, -1)
            sections = text.rope_parameters.get("mrope_section") or self.language_model.rotary_emb.mrope_section
            self._axis_of_channel = mrope.axes(sections).to(model.device)  # [d/2]

    def __len__(self) -> int:
        return self.positions.shape[1]

    @property
    def bytes(self) -> int:
        """Memory that keys, values and what is known of them take."""
        held = [tensor for layer in self.cache.layers if len(self) for tensor in (layer.keys, layer.values)]
        held += [*(self.made or []), *(getattr(self, name) for name in FIELDS)]
        return sum(tensor.nbytes for tensor in (held if self.axes is None else [*held, self.axes]))

    @property
    def free(self) -> int:
        """Position of text that is read next."""
        return self.next if self.mrope is None else self.reached.free

    def at(self, layer: int) -> Tensor:
        """Positions of a layer's entries, [n], or [n,d/2] where pairs of channels follow different axes."""
        return self.positions[layer] if self.axes is None else self.axes[self._axis_of_channel, layer].T

    def count(self, *kinds: int) -> int:
        """Entries of some kinds."""
        return int(torch.isin(self.kind[0], torch.tensor(kinds, device=self.kind.device)).sum())

    def read(
        self,
        embeddings: Tensor,
        kind: Tensor,
        slot: int | Tensor = -1,
        reserve: int = RESERVE,
        sees: Tensor | None = None,
        places: Tensor | None = None,
    ) -> None:
        """Let the language model read on.

        Args:
            embeddings: [1,n,D].
            kind: int64 [n], what they are.
            slot: number of the slot that they belong to, or of each, int64 [n].
            reserve: positions that must be left behind them.
            sees: bool [n,n], which of each other they see, besides all that was read before; None: what is before them.
            places: of the vision tokens among them, see Mrope.places.

        Raises:
            ValueError: they do not fit the language model's range.
        """
        count, device = embeddings.shape[1], self.positions.device
        is_video = kind.to(device) == VIDEO
        told, reached = None, self.reached
        if self.mrope is None:
            self.make_room(count, reserve)
        else:
            none = torch.empty(4, 0, dtype=torch.long)
            told, reached = self.mrope.go_on(is_video.cpu(), none if places is None else places, self.reached)
            self._check_range(reached.end)
            told = told.to(device)  # [3,n]
        ids = torch.arange(self.next, self.next + count, device=device)
        masks = causal_in_parts(self.language_model, count, len(self)) if sees is None else nullcontext(
            {FULL: torch.cat([sees.new_ones(count, len(self)), sees], 1)[None, None]}
        )  # fmt: skip
        with masks as mask:
            self.language_model(
                inputs_embeds=embeddings,
                attention_mask=mask,
                position_ids=ids[None] if told is None else told[:, None],
                use_cache=True,
                **{cache_name(self.language_model): self.cache},
            )
        if self.made is not None:
            new = [layer.keys[:, :, -count:] for layer in self.cache.layers]
            self.made = [torch.cat(pair, 2) for pair in zip(self.made, new, strict=True)]
        place = torch.where(is_video, is_video.cumsum(0) - 1, -1)
        slots = slot.to(ids) if isinstance(slot, Tensor) else torch.full_like(ids, slot)
        new_fields = (ids, kind.to(ids), slots, place, ids)
        layers = len(self.positions)
        for name, values in zip(FIELDS, new_fields, strict=True):
            setattr(self, name, torch.cat([getattr(self, name), values.expand(layers, -1)], 1))
        if self.axes is not None and told is not None:
            self.axes = torch.cat([self.axes, told[:, None].expand(-1, layers, -1)], 2)
        self.next, self.reached = self.next + count, reached

    def make_room(self, count: int, reserve: int) -> None:
        """Number entries anew if so much more text would pass the policy's limit.

        Raises:
            ValueError: there is no room.
        """
        if self.mrope is not None:
            self._check_range(max(self.reached.end, self.reached.free + count))
            return
        compact = isinstance(self.policy, Compact)
        if isinstance(self.policy, Compact):
            at = self.limit - reserve if self.policy.at is None else self.policy.at
            if self.next + count > at and self.next > len(self):
                self.compact()
        if self.next + count > self.limit:
            remedy = "a smaller budget" if compact else "positions=Compact(), which numbers what is kept anew,"
            raise ValueError(
                f"the stream has come to position {self.next}, and {count} more pass the {self.limit} that the "
                f"language model reads; use {remedy} or start anew"
            )

    def _check_range(self, end: int) -> None:
        if end > self.limit:
            raise ValueError(
                f"the stream would come to position {end} of the {self.limit} that the language model reads; take a "
                "memory of tokens, such as 'window', or start anew"
            )

    def compact(self) -> None:
        """Number the entries 0 to n - 1, by one rotation of each key from where it was made."""
        if self.made is None:
            self.made, self.made_at = [layer.keys for layer in self.cache.layers], self.positions
        order = torch.arange(len(self), device=self.positions.device)
        for layer, made, made_at in zip(self.cache.layers, self.made, self.made_at, strict=True):
            layer.keys = rotate(made, order - made_at, self.frequencies).to(made.dtype)
        self.positions = order.expand_as(self.positions)
        self.next = len(self)

    def keep(self, index: Tensor) -> None:
        """Forget all entries but some.

        Args:
            index: int64 [k], or [L,k] for each layer, in the order of positions.
        """
        index = index.expand(len(self.positions), -1)
        for number, layer in enumerate(self.cache.layers):
            layer.keys = layer.keys.index_select(2, index[number])
            layer.values = layer.values.index_select(2, index[number])
        if self.made is not None:
            self.made = [made.index_select(2, index[number]) for number, made in enumerate(self.made)]
        for name in FIELDS:
            setattr(self, name, getattr(self, name).gather(1, index))
        if self.axes is not None:
            self.axes = self.axes.gather(2, index.expand(3, -1, -1))

    def insert(self, keys: Tensor, values: Tensor, positions: Tensor, slot: Tensor, axes: Tensor | None = None) -> None:
        """Add entries that were merged from others, each before what stands at its position.

        Args:
            keys: [L,H,m,d], rotated.
            values: [L,H,m,d].
            positions: int64 [L,m].
            slot: int64 [L,m].
            axes: int64 [3,L,m], where positions have three.
        """
        for number, layer in enumerate(self.cache.layers):
            layer.keys = torch.cat([layer.keys, keys[number, None]], 2)
            layer.values = torch.cat([layer.values, values[number, None]], 2)
        if self.made is not None:
            self.made = [torch.cat([made, keys[number, None]], 2) for number, made in enumerate(self.made)]
        new_fields = (positions, torch.full_like(slot, PROTOTYPE), slot, torch.full_like(slot, -1), positions)
        for name, new in zip(FIELDS, new_fields, strict=True):
            setattr(self, name, torch.cat([getattr(self, name), new], 1))
        if self.axes is not None and axes is not None:
            self.axes = torch.cat([self.axes, axes], 2)
        self.keep((2 * self.positions + (self.kind != PROTOTYPE)).sort(dim=1, stable=True).indices)

    def fork(self) -> KeyValues:
        """One that goes on from here and leaves this one as it is; the tensors are shared."""
        other = copy.copy(self)
        other.cache = fork_cache(self.cache)
        other.made = None if self.made is None else list(self.made)
        return other

    @property
    def frequencies(self) -> Tensor:
        """Angle a position of each pair of channels, [d/2]."""
        return self.language_model.rotary_emb.inv_freq

    def keys(self, layer: int) -> Tensor:
        """Keys of a layer before their rotation, float32 [H,n,d]."""
        rotated, at = (self.cache.layers[layer].keys, self.at(layer)) if self.made is None else (
            self.made[layer], self.made_at[layer]
        )  # fmt: skip
        return rotate(rotated[0], -at, self.frequencies)

    def state(self) -> dict[str, Tensor]:
        """All of it, as tensors by name."""
        layers = self.cache.layers
        state = {
            "keys": torch.cat([layer.keys for layer in layers]),  # [L,H,n,d]
            "values": torch.cat([layer.values for layer in layers]),
            "next": torch.tensor(self.next),
            **{name: getattr(self, name).contiguous() for name in FIELDS},
        }
        if self.axes is not None:
            told = (self.reached.free, self.reached.end, *(self.reached.block or (-1, -1)))
            state |= {"axes": self.axes.contiguous(), "reached": torch.tensor(told)}
        return state if self.made is None else {**state, "made": torch.cat(self.made)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Hold what `state` gave, in place of nothing."""
        device = self.positions.device
        for number, (keys, values) in enumerate(zip(state["keys"].to(device), state["values"].to(device), strict=True)):
            self.cache.update(keys[None], values[None], number)
        for name in FIELDS:
            setattr(self, name, state[name].to(device))
        self.made = [made[None] for made in state["made"].to(device)] if "made" in state else None
        self.next = int(state["next"])
        if "axes" in state:
            free, end, start, time = state["reached"].tolist()
            self.axes = state["axes"].to(device)
            self.reached = Reached(free, end, None if start < 0 else (start, time))
