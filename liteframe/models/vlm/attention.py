"""Causal attention of a language model without a mask of its own: what flash attention and grouped queries ask for.

transformers makes a mask of queries x keys as soon as a prompt is read in parts, or padded. No flash attention takes
such a mask, and under one, transformers repeats keys and values for every query head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import CausalBias, causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# Language models that take a dictionary of masks, by the kind of their layers.
MASKS_BY_LAYER = ("qwen2", "qwen3", "qwen2_5_vl_text")
FULL = "full_attention"
IN_PARTS = "liteframe_sdpa_in_parts"


def takes_causal_masks(config: Any) -> bool:
    """Whether a language model of this config takes, as they are, masks for torch's own attention.

    Only that one is causal where there is no mask.
    """
    by_layer = config.model_type in MASKS_BY_LAYER and set(config.layer_types) == {FULL}
    return by_layer and config._attn_implementation == "sdpa"


@contextmanager
def causal_in_parts(language_model: Any, queries: int, before: int) -> Iterator[dict[str, CausalBias] | None]:
    """The attention mask with which a language model reads `queries` tokens that follow `before` in its cache.

    None where transformers needs none: at the beginning of a prompt, and for one token.
    """
    config = language_model.config
    if before == 0 or queries == 1 or not takes_causal_masks(config):
        yield None
        return
    config._attn_implementation = IN_PARTS
    try:
        yield {FULL: causal_lower_right(queries, before + queries)}
    finally:
        config._attn_implementation = "sdpa"


def attend_in_parts(
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
    """An attention of transformers: `sdpa`, but that grouped queries stay so under a causal bias.

    query [B,heads,Q,D]; key, value [B,groups,K,D] -> [B,Q,heads,D].
    """
    if not isinstance(attention_mask, CausalBias):
        # Another thread generates with the same model meanwhile.
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    attended = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return attended.transpose(1, 2).contiguous(), None


AttentionInterface.register(IN_PARTS, attend_in_parts)
AttentionMaskInterface.register(IN_PARTS, sdpa_mask)  # for that other thread
