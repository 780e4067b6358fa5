"""Devices that share the tokens of a prompt (context parallelism): who reads which, and how they attend to all of them.

Each device runs the language model on its own columns of every row; in each layer, keys and values of all are gathered
(Llama 3, arXiv 2407.21783, section 3.3.2). Causal attention costs a column more the later it stands, so each device
takes two chunks: one of the first half, and the one as far from the end.

Shapes: S devices, R rows of L tokens, of which a device has L/S; H heads, G groups of keys and values, D channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from typing_extensions import override

CONTEXT_PARALLEL = "liteframe_context_parallel"  # for transformers, once `attend_together` has been called


def columns_of(rank: int, devices: int, length: int) -> Tensor:
    """Columns that a device reads, int64 [L/S], ascending.

    Args:
        rank: of the device, from 0 to S - 1.
        devices: S.
        length: L, a multiple of 2 S.
    """
    chunks = torch.arange(length).chunk(2 * devices)
    return torch.cat([chunks[rank], chunks[-1 - rank]])


class Gather(torch.autograd.Function):
    """What all devices of a group have, [...] -> [S,...]; each gets back the sum of all gradients of its own."""

    @staticmethod
    @override
    def forward(ctx: Any, own: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        everyone = own.new_empty(group.size() * len(own), *own.shape[1:])
        dist.all_gather_into_tensor(everyone, own.contiguous(), group)
        return everyone.unflatten(0, (group.size(), len(own)))

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients  # [S,...]
        own = torch.empty_like(gradient[0])
        dist.reduce_scatter_tensor(own, gradient.flatten(0, 1).contiguous(), group=ctx.group)
        return own, None


def attend_together(group: dist.ProcessGroup) -> None:
    """Make `CONTEXT_PARALLEL` an attention of transformers, among the devices of a group; one group a process."""

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        attended = causal_attention(query, key, value, group, scaling, dropout)
        return attended.transpose(1, 2).contiguous(), None

    AttentionInterface.register(CONTEXT_PARALLEL, attend)
    AttentionMaskInterface.register(CONTEXT_PARALLEL, sdpa_mask)  # for what reads a prompt outside of training


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    group: dist.ProcessGroup,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Causal attention of this device's columns to all columns up to each.

    Args:
        query: [R,H,L/S,D], at the device's `columns_of`.
        key: [R,G,L/S,D], there too.
        value: as `key`.
        group: the devices.
        scaling: of the products; None is 1 / sqrt(D).
        dropout: share of the weights that are dropped.

    Returns:
        [R,H,L/S,D].
    """
    rank, devices = group.rank(), group.size()
    gathered = Gather.apply(torch.stack([key, value]), group)  # [S,2,R,G,L/S,D]
    halves = gathered.chunk(2, dim=-2)  # each device's first and last chunk
    chunks = [*halves[0], *halves[1].flip(0)]  # 2 S x [2,R,G,c,D], in the order of the row
    attended = []
    for chunk, queries in zip((rank, 2 * devices - 1 - rank), query.chunk(2, dim=2), strict=True):
        keys, values = torch.cat(chunks[: chunk + 1], dim=-2)
        bias = causal_lower_right(queries.shape[2], keys.shape[2])
        attended.append(
            F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=bias, dropout_p=dropout, scale=scaling,
                enable_gqa=keys.shape[1] != queries.shape[1],
            )
        )  # fmt: skip
    return torch.cat(attended, dim=2)
