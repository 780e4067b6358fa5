"""Slots that hardly differ become one.

Shapes: S slots, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from liteframe.answer.memory.base import split_slots
from liteframe.reduce.base import Tokens, join_tokens, mean_at
from liteframe.reduce.scenes import alike


def filter_slots(clip: Tokens, threshold: float) -> Tokens:
    """Make one of successive slots that are alike, the mean of their tokens (StreamMem, arXiv 2508.15717, section 3).

    A slot joins the run before it if the cosine between its mean token and that of the run is above the threshold.

    Args:
        clip: its slots have equally many tokens; runs end with it.
        threshold: 0.95 in the paper, for single frames.
    """
    runs: list[list[Tokens]] = []
    mean = torch.empty(0)
    for slot in split_slots(clip):
        glob = slot.tokens.float().mean(0)  # [C]
        if runs and alike(mean, glob) > threshold:
            runs[-1].append(slot)
            mean = mean + (glob - mean) / len(runs[-1])
        else:
            runs.append([slot])
            mean = glob
    return join_tokens([mean_slot(run) for run in runs])


def mean_slot(slots: Sequence[Tokens]) -> Tokens:
    """One slot in place of several that have equally many tokens: the mean at each place, weighted by sizes.

    Its tokens' sizes are the sums, its span reaches from the first to the last.
    """
    if len(slots) == 1:
        return slots[0]
    sizes = torch.stack([slot.size for slot in slots])  # [S,N]
    tokens = torch.stack([slot.tokens for slot in slots])  # [S,N,C]
    first, last = slots[0], slots[-1]
    times = None
    if first.times is not None and last.times is not None:
        times = [(first.times[0][0], last.times[-1][1])]
    line = (first.slots[0][0], last.slots[-1][1], len(first.tokens))
    return Tokens(mean_at(tokens, sizes), first.frame, first.place, sizes.sum(0), [line], times, first.shape)
