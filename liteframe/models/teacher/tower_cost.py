"""FLOPs of a teacher's tower, from the shapes of its weights alone."""

import math

from torch import nn

from liteframe.models.teacher.base import VitTower, transformer_blocks
from liteframe.models.teacher.qwen import QwenTower


def tower_flops(tower: VitTower | QwenTower, grid: tuple[int, int]) -> int:
    """FLOPs of one frame of (h,w) patches, two per multiply-add: patch embedding and blocks.

    Linear and convolution layers and the two attention products, as `flops + attention_flops` of
    `liteframe.models.student.cost`; heads, mergers and projectors behind the blocks are left out. Of a tower that sees
    pairs, half a pair. The weights may be on the meta device.
    """
    blocks, dim, patches = blocks_of(tower), tower.dim, math.prod(grid)
    tokens = tower.prefix + patches
    matrices = sum(weight.numel() for weight in blocks.parameters() if weight.ndim > 1)
    flops = 2 * tokens * matrices
    flops += 2 * patches * 3 * tower.patch_size**2 * tower.temporal_patch * dim
    flops += sum(4 * tokens * seen * dim for seen in _seen(tower, len(blocks), tokens))
    return flops // tower.temporal_patch


def blocks_of(tower: VitTower | QwenTower) -> nn.ModuleList | nn.Sequential:
    """Its blocks, in order."""
    return tower.model.blocks if isinstance(tower, QwenTower) else transformer_blocks(tower.model)


def _seen(tower: VitTower | QwenTower, depth: int, tokens: int) -> list[int]:
    """Tokens that a token attends to, block by block."""
    window = getattr(tower.model.config, "window_size", None) if isinstance(tower, QwenTower) else None
    if window is None:
        return [tokens] * depth
    whole = tower.model.config.fullatt_block_indexes
    return [tokens if block in whole else (window // tower.patch_size) ** 2 for block in range(depth)]
