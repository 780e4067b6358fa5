"""Losses between student and target tokens: pure functions.

Shapes: predictions and targets [B,T,h,w,C]; a token's loss averages over C; a clip's loss averages over its tokens by
weight; `batch_loss` sums clips and divides by the micro-batch size, so accumulation and failed clips change nothing.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

LossName = Literal["mse", "smooth_l1", "cosine+smooth_l1"]
COSINE_SHARE = 0.9


def token_losses(prediction: Tensor, target: Tensor, name: LossName, parts: int = 1) -> Tensor:
    """Loss of each token, [B,T,h,w,C] x 2 -> [B,T,h,w], in float32 (float64 stays).

    Where channels are those of `parts` features of one width (deepstack), it is the mean of their losses.

    "mse": mean squared error; "smooth_l1": Huber with beta 1; "cosine+smooth_l1": 0.9 (1 - cosine) + 0.1 smooth L1.

    Raises:
        ValueError: an unknown name or shapes that differ.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"student gives {list(prediction.shape)}, the target is {list(target.shape)}")
    if parts > 1:
        prediction, target = (x.unflatten(-1, (parts, -1)) for x in (prediction, target))  # [B,T,h,w,parts,C/parts]
        return token_losses(prediction, target, name).mean(-1)
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    prediction, target = prediction.to(dtype), target.to(dtype)
    if name == "mse":
        return F.mse_loss(prediction, target, reduction="none").mean(-1)
    smooth = F.smooth_l1_loss(prediction, target, reduction="none").mean(-1)
    if name == "smooth_l1":
        return smooth
    if name == "cosine+smooth_l1":
        cosine = F.cosine_similarity(prediction, target, dim=-1)
        return COSINE_SHARE * (1 - cosine) + (1 - COSINE_SHARE) * smooth
    raise ValueError(f"loss is {name!r}; choose mse, smooth_l1 or cosine+smooth_l1")


def mean_cosine(ours: Tensor, theirs: Tensor, parts: int) -> Tensor:
    """Cosine of features [...,C] of one shape, the mean of those of their `parts` of equal width: [...]."""
    ours, theirs = (x.unflatten(-1, (parts, -1)) for x in (ours, theirs))
    return F.cosine_similarity(ours, theirs, dim=-1).mean(-1)


def drop_large_losses(losses: Tensor, weight: Tensor, sigmas: float) -> Tensor:
    """Weights [B,T,h,w], 0 for tokens whose loss exceeds mean + `sigmas` std of the batch's weighted tokens."""
    values = losses.detach()
    total = weight.sum().clamp_min(1)
    mean = (values * weight).sum() / total
    std = ((values - mean).square() * weight).sum().div(total).sqrt()
    return weight * (values <= mean + sigmas * std)


def clip_losses(losses: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over the tokens of each clip, [B,T,h,w] x 2 -> [B]; 0 for a clip without weight."""
    return (losses * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1e-12)


def batch_loss(per_clip: Tensor, micro_batch_size: int) -> Tensor:
    """Sum of the clips' losses [B] over the clips of a full micro-batch: the only place where a batch is normalized."""
    return per_clip.sum() / micro_batch_size
