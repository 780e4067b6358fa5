"""Positions on three axes (M-RoPE, arXiv 2409.12191, 2502.13923): time, row and column of what a language model reads.

A block of vision tokens that stand together begins at the next free position; so many positions as its grid has rows or
columns, whichever are more, are then taken, and text goes on behind them. This file travels inside exported models: it
imports torch, nothing else.
Shapes: N vision tokens of a prompt of L tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EARLY = 1e-6  # positions by which a time may miss the one that it means


@dataclass(frozen=True)
class Reached:
    """Where the beginning of a prompt leads.

    Attributes:
        free: position of text that goes on behind it.
        end: above all positions so far; times of vision tokens may be higher than text that follows them.
        block: start and time of the vision tokens that it ends with; None: it ends with text.
    """

    free: int = 0
    end: int = 0
    block: tuple[int, int] | None = None


@dataclass(frozen=True)
class Mrope:
    """How a language model numbers vision tokens.

    Attributes:
        tokens_per_second: positions a second on the time axis; None where a block has one time, and times are text.
    """

    tokens_per_second: float | None = None

    def places(
        self,
        slots: Sequence[tuple[int, int, int]],
        shape: tuple[int, int],
        times: Sequence[tuple[float, float]] | None = None,
        place: Tensor | None = None,
    ) -> Tensor:
        """Where the tokens of a video lie: int64 [4,N] of time, row, column, and positions that their grid takes.

        Times are counted from 0 s on, so that a slot has one position whatever was shown of the video before it.

        Args:
            slots: first frame, last frame and number of tokens of each.
            shape: rows and columns of a slot's grid of tokens.
            times: seconds of the first and the last frame of each slot; None: frames are a second apart.
            place: int64 [N], raster index in the grid; -1 for a token without a place, which lies in the middle of it.
                None: the tokens of each slot are its whole grid.
        """
        rows, columns = shape
        counts = torch.tensor([tokens for _, _, tokens in slots])
        if place is None:
            place = torch.arange(rows * columns).repeat(len(slots))
        place = torch.where(place < 0, (rows // 2) * columns + columns // 2, place)
        if len(place) != int(counts.sum()) or (len(place) and int(place.max()) >= rows * columns):
            raise ValueError(f"slots of {counts.tolist()} tokens do not fit a grid of {rows}x{columns} tokens")
        begins = [first for first, _, _ in slots] if times is None else [first for first, _ in times]
        rate = self.tokens_per_second or 0.0
        time = torch.tensor([int(seconds * rate + EARLY) for seconds in begins]).repeat_interleave(counts)
        return torch.stack([time, place // columns, place % columns, torch.full_like(place, max(rows, columns))])

    def position_ids(self, vision: Tensor, places: Tensor) -> Tensor:
        """Positions of a prompt, int64 [3,L].

        Args:
            vision: bool [L], where its vision tokens are.
            places: int64 [4,N] of these, of one video or image after another.

        Raises:
            ValueError: there are more or fewer of them.
        """
        return self.go_on(vision, places, Reached())[0]

    def go_on(self, vision: Tensor, places: Tensor, reached: Reached) -> tuple[Tensor, Reached]:
        """Positions of what follows a beginning, and where that leads; arguments and errors as of position_ids.

        Vision tokens that follow vision tokens belong to their block.
        """
        if int(vision.sum()) != places.shape[1]:
            raise ValueError(f"the prompt holds {int(vision.sum())} vision tokens, but places of {places.shape[1]}")
        values, counts = torch.unique_consecutive(vision, return_counts=True)
        parts, seen = [], 0
        free, end, begun = reached.free, reached.end, reached.block
        for is_vision, count in zip(values.tolist(), counts.tolist(), strict=True):
            if not is_vision:
                parts.append((torch.arange(count) + free).expand(3, -1))
                free, begun = free + count, None
                end = max(end, free)
                continue
            block = places[:, seen : seen + count]
            seen += count
            start, time = begun = begun or (free, int(block[0, 0]))
            positions = block[:3] + start
            positions[0] -= time
            parts.append(positions)
            free = max(free, start + int(block[3].max()))
            end = max(end, free, int(positions.max()) + 1)
        positions = torch.cat(parts, 1) if parts else torch.empty(3, 0, dtype=torch.long)
        return positions, Reached(free, end, begun)

    def axes(self, sections: Sequence[int]) -> Tensor:
        """Which axis each pair of a head's channels follows, int64 [d/2].

        Where time counts seconds (Qwen2.5-VL), those of an axis stand together; where it does not (Qwen3-VL), axes take
        turns.

        Args:
            sections: pairs that follow time, rows and columns.
        """
        if self.tokens_per_second is not None:
            return torch.arange(3).repeat_interleave(torch.tensor(sections))
        axes = torch.zeros(sum(sections), dtype=torch.long)
        for axis in (1, 2):
            axes[axis : 3 * sections[axis] : 3] = axis
        return axes


def padded_position_ids(rows: Sequence[Tensor], attention_mask: Tensor) -> Tensor:
    """Positions of a batch, int64 [3,B,L], from those of its rows [3,l]; padding has position 0.

    Args:
        rows: [3,l] of each row's tokens.
        attention_mask: [B,L], 1 for these tokens.
    """
    ids = torch.zeros(3, *attention_mask.shape, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[:, number, attention_mask[number].bool()] = row
    return ids
