"""Where summary tokens stand among the tokens of a prompt, and who sees whom: one rule for training and streaming.

A segment of a video is read with summary tokens among its own; when it ends, its own tokens are forgotten. That is one
pass over all with a mask: what will be forgotten is seen within its segment alone. What is kept (text, labels, what is
not summarized) sees none of it, so it can reach an answer through summary tokens only.

Shapes: R rows of L tokens, of L' with summary tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

SUMMARY = -1  # in the place of a column
LARGEST_DENSE = 8192  # tokens of a row for which a mask of all pairs is made


class Segment(NamedTuple):
    """A part of a video that is summarized.

    Attributes:
        video: columns of its tokens, ascending.
        labels: columns that are forgotten with them.
        ratio: tokens that a summary token stands for.
    """

    video: Sequence[int]
    labels: Sequence[int]
    ratio: int


class Layout(NamedTuple):
    """Rows with summary tokens among the others.

    Attributes:
        source: int64 [R,L'], the column of what stands here; SUMMARY for a summary token, and behind a row's end.
        segment: int64 [R,L'], of summary tokens and what will be forgotten; -1 for all else.
        kept: bool [R,L'], whether later segments see it.
        rows, columns: int64 [K] each, where summary tokens stand.
    """

    source: Tensor
    segment: Tensor
    kept: Tensor
    rows: Tensor
    columns: Tensor

    def to(self, device: torch.device) -> Layout:
        """The same on a device."""
        return Layout(*(part.to(device, non_blocking=True) for part in self))


def summarized(tokens: int, ratio: int) -> list[int]:
    """After how many tokens of a segment a summary token stands: every `ratio`, and at the end for what is left."""
    return [*range(ratio, tokens, ratio), tokens] if tokens else []


def lay_out(rows: Sequence[tuple[int, Sequence[Segment]]]) -> Layout:
    """Put summary tokens into rows.

    Args:
        rows: of each, how many tokens it has, and its segments in their order.
    """
    laid = [_lay_out_row(length, segments) for length, segments in rows]
    width = max(len(row) for row in laid)
    entries = [row + [(SUMMARY, -1, True)] * (width - len(row)) for row in laid]
    places = [
        (number, column) for number, row in enumerate(laid) for column, entry in enumerate(row) if entry[0] == SUMMARY
    ]
    source, segment, kept = torch.tensor(entries, dtype=torch.long).unbind(-1)  # [R,L'] each
    rows_of, columns = torch.tensor(places, dtype=torch.long).view(-1, 2).unbind(1)
    return Layout(source, segment, kept.bool(), rows_of, columns)


def _lay_out_row(length: int, segments: Sequence[Segment]) -> list[tuple[int, int, bool]]:
    """(source, segment, kept) of each token of a row."""
    owner, ends = dict[int, int](), set[int]()
    for number, segment in enumerate(segments):
        owner |= dict.fromkeys([*segment.video, *segment.labels], number)
        ends |= {segment.video[count - 1] for count in summarized(len(segment.video), segment.ratio)}
    row = []
    for column in range(length):
        row.append((column, owner.get(column, -1), column not in owner))
        if column in ends:
            row.append((SUMMARY, owner[column], True))
    return row


def rearranged(values: Tensor, summary: Tensor, source: Tensor) -> Tensor:
    """What stands in rows with summary tokens.

    Args:
        values: [R,L,...] of the rows without them.
        summary: [...], of a summary token.
        source: see Layout.

    Returns:
        [R,L',...].
    """
    rows, width = values.shape[:2]
    further = torch.cat([values, summary.to(values).expand(rows, 1, *summary.shape)], 1)  # [R,L+1,...]
    index = torch.where(source == SUMMARY, width, source)
    return further[torch.arange(rows, device=index.device)[:, None], index]


def visibility(layout: Layout) -> Callable[[Any, Any, Any, Any], Any]:
    """The mask as a function of (row, head, query, key), as flex attention takes it: what a token sees."""
    segment, kept = layout.segment, layout.kept

    def sees(row: Any, head: Any, query: Any, key: Any) -> Any:
        own = segment[row, query] == segment[row, key]
        return (key <= query) & (kept[row, key] | own)

    return sees


def dense_mask(layout: Layout) -> Tensor:
    """The mask of all pairs, bool [R,1,L',L'].

    Raises:
        ValueError: rows are too long for one.
    """
    rows, length = layout.source.shape
    if length > LARGEST_DENSE:
        raise ValueError(
            f"{length:,} tokens with their summary tokens are more than a mask of all pairs is made for, which is "
            f"{LARGEST_DENSE:,}; use fewer frames, or a GPU, where flex attention needs no such mask"
        )
    row, place = torch.arange(rows, device=layout.source.device), torch.arange(length, device=layout.source.device)
    return visibility(layout)(row[:, None, None], None, place[:, None], place)[:, None]


def block_mask(layout: Layout) -> Any:
    """The mask for flex attention, which skips blocks that see nothing of each other."""
    from torch.nn.attention.flex_attention import create_block_mask

    rows, length = layout.source.shape
    device = layout.source.device
    compiled = device.type == "cuda"  # else all pairs are made on the way
    return create_block_mask(visibility(layout), rows, None, length, length, device=device, _compile=compiled)
