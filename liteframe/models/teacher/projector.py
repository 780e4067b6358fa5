"""A VLM's road from patch features to language-model inputs: pixel shuffle, then its MLP."""

import math

from torch import Tensor, nn


def pixel_shuffle(x: Tensor, factor: int = 2) -> Tensor:
    """Fold factor x factor patches into channels: [...,h,w,C] -> [...,h/f,w/f,f*f*C], any h and w the factor divides.

    Channel order of InternVL's `ps_version v2`: block (row offset, column offset) in row-major order, C channels each.

    Raises:
        ValueError: the factor does not divide h or w.
    """
    height, width = x.shape[-3:-1]
    if height % factor or width % factor:
        raise ValueError(f"pixel shuffle by {factor} does not divide a grid of {height}x{width} patches")
    x = x.unflatten(-3, (height // factor, factor)).unflatten(-2, (width // factor, factor))
    # [...,h/f,f,w/f,f,C] -> [...,h/f,w/f,f,f,C]
    return x.transpose(-4, -3).flatten(-3)


class VlmProjector(nn.Module):
    """InternVL's pixel shuffle and multi-modal projector: [...,h,w,C] -> [...,h/f,w/f,C_llm]."""

    def __init__(self, mlp: nn.Module, factor: int):
        super().__init__()
        self.mlp = mlp
        self.factor = factor

    def forward(self, patches: Tensor) -> Tensor:
        """[...,h,w,C] in any floating type; computed in that of the projector's weights."""
        dtype = next(self.mlp.parameters()).dtype
        return self.mlp(pixel_shuffle(patches.to(dtype), self.factor))


def shuffle_factor(downsample_ratio: float) -> int:
    """Patches per side that a `downsample_ratio` folds together (0.5 -> 2).

    Raises:
        ValueError: the ratio is not one over an integer.
    """
    factor = round(1 / downsample_ratio) if downsample_ratio > 0 else 0
    if factor < 1 or not math.isclose(1 / factor, downsample_ratio):
        raise ValueError(f"downsample_ratio={downsample_ratio} is not 1/n for a whole n")
    return factor
