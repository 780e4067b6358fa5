"""EVS: tokens that differ from the same place in the frame before (arXiv 2510.14624, vLLM; reducers_ablations.md 3.13).

Shapes: F frames, n tokens a frame, C channels.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F
from typing_extensions import override

from liteframe.reduce.base import Signals, Tokens
from liteframe.reduce.reducer import Reducer
from liteframe.reduce.selection import top, unit


@dataclass(frozen=True)
class EVS(Reducer):
    """The most changed tokens of the video, untouched and in raster order; the first frame always stays whole.

    So a short video keeps little else: at 1/16, one of 16 frames has its first frame alone.
    """

    @override
    def reduce(self, signals: Signals, budget: int) -> Tokens:
        """As many tokens as the budget says, but never fewer than one frame has."""
        x = signals.tokens  # [F,n,C]
        direction = unit(x)
        change = F.pad(1 - (direction[1:] * direction[:-1]).sum(-1), (0, 0, 1, 0), value=torch.inf)  # [F,n]
        chosen = top(change.flatten(), max(budget, x.shape[1]))
        keep = torch.zeros_like(change, dtype=torch.bool)
        keep.view(-1)[chosen] = True
        return Tokens.kept(signals, keep)
