"""Which parts of a stream a question is about.

Shapes: K parts, l layers, H key-value heads, d channels a head, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from liteframe.answer.key_values import TEXT, KeyValues
from liteframe.answer.reader import Reader, watch_queries


def by_meaning(reader: Reader, question: str, keys: Tensor) -> Tensor:
    """Cosine of the question's mean embedding with the mean token of each part [K,C] -> [K]; a control, since the
    spaces differ.
    """
    words = reader.model.get_input_embeddings()(torch.tensor(reader.ids(question), device=keys.device))  # [n,C]
    return F.cosine_similarity(words.float().mean(0), keys.float(), dim=-1)


def by_attention(reader: Reader, question: str, keys: Tensor) -> Tensor:
    """How the question's queries meet the keys of each part, before rotation, [K,l,H,d] -> [K].

    As ReKV chooses blocks of a cache, but one choice for all layers, by the middle third of them.
    """
    past = reader.begin()
    with torch.inference_mode(), watch_queries(past.language_model, rotated=False) as queries:
        reader.read_text(past, question, TEXT)
    heads = keys.shape[2]
    of_layer = [queries[layer].mean(1) for layer in middle_layers(len(queries))]  # [heads,d]
    grouped = torch.stack([one.unflatten(0, (heads, -1)).mean(1) for one in of_layer])  # [l,H,d]
    return (keys.float() * grouped).sum((2, 3)).mean(1)


def middle_layers(layers: int) -> range:
    """The middle third."""
    return range(layers // 3, layers - layers // 3)


def mean_keys(past: KeyValues, entries: Tensor) -> Tensor:
    """Mean key, before rotation, of some entries (bool [n]) in the middle layers: float32 [l,H,d]."""
    return torch.stack([past.keys(layer)[:, entries].mean(1) for layer in middle_layers(len(past.positions))])
