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
        if int(vision.sum()) != places.shape[1]:
            raise ValueError(f"the prompt holds {int(vision.sum())} vision tokens, but places of {places.shape[1]}")
        values, counts = torch.unique_consecutive(vision, return_counts=True)
        parts, free, seen = [], 0, 0
        for is_vision, count in zip(values.tolist(), counts.tolist(), strict=True):
            if not is_vision:
                parts.append((torch.arange(count) + free).expand(3, -1))
                free += count
                continue
            block = places[:, seen : seen + count]
            seen += count
            positions = block[:3] + free
            positions[0] -= block[0, 0]
            parts.append(positions)
            free += int(block[3].max())
        return torch.cat(parts, 1) if parts else torch.empty(3, 0, dtype=torch.long)


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
