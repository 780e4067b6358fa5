"""The toy video of reducers_ablations.md, section 5: 8 frames of 4x4 tokens of 6 channels, with all signals."""

import numpy as np
import torch

from liteframe.reduce import Signals

F, SIDE, C = 8, 4, 6
N = SIDE * SIDE


def toy_video(dtype=torch.float64, frames=F):
    """Its signals; the global vector of a frame is its mean token."""
    f, i, c = np.ogrid[:frames, :N, :C]
    wobble = 0.1 * (1 + i % 3) * np.sin(2 * f + 0.9 * i + 1.7 * c)
    early = np.sin(1 + 1.3 * i + 2.1 * c + 0.37 * i * c)
    late = np.cos(2 + 0.8 * i + 1.9 * c + 0.29 * i * c)
    tokens = torch.from_numpy(np.where(f < 5, early, late) + wobble)
    saliency = torch.from_numpy(2 * np.sin(0.5 + 1.1 * i + 0.3 * f)[..., 0]).softmax(1)
    k = np.arange(4)
    keys = torch.from_numpy(np.cos(0.4 + 0.6 * i + 1.5 * k + 0.2 * f + 0.23 * i * k))
    return Signals(*(x.to(dtype) if isinstance(x, torch.Tensor) else x for x in (
        tokens, (SIDE, SIDE), saliency, keys, tokens.mean(1)
    )))  # fmt: skip


def toy_queries():
    """[F,C], the global vectors that WAP weighs it by."""
    f, c = np.ogrid[:F, :C]
    return torch.from_numpy(np.cos(0.3 + 0.7 * f + 1.1 * c))
