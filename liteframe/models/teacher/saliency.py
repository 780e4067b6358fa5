"""What a teacher finds salient where it has no cls token: attention received, or the attention of a pooling probe.

Both are logs of attention weights, so that WAP's softmax over a window of them divides that attention among the
patches of the window.
Shapes: M images (or pairs of frames), N tokens, C channels, D channels of a head.
"""

import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

# Weights of one layer's attention that are in memory at once: 256 MiB in float32.
ATTENTION_WEIGHTS = 2**26


def attention_received(query: Tensor, key: Tensor, *, scale: float | None = None, mask: Tensor | None = None) -> Tensor:
    """What each token receives of a layer's attention: the mean over heads and queries of softmax(scale * q . k).

    Images are taken a few at a time, and one that is too large for it by parts of its queries.

    Args:
        query: [M,heads,Q,D], as the attention takes it: with norms and rotations applied. One token's alone, or all.
        key: [M,heads,N,D], or fewer heads that divide those of the queries.
        scale: None is 1 / sqrt(D).
        mask: broadcasts to [M,heads,Q,N]: bool, False where a query may not look, or added to the products.

    Returns:
        [M,N], sums to 1 over N; float32 inside autocast too (float64 stays).
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    images, heads, queries, channels = query.shape
    tokens = key.shape[2]
    scale = channels**-0.5 if scale is None else scale
    mask = None if mask is None else mask.expand(images, heads, queries, tokens)
    at_once = max(1, ATTENTION_WEIGHTS // (heads * queries * tokens))
    rows = max(1, ATTENTION_WEIGHTS // (heads * tokens))
    received = key.new_zeros(images, tokens, dtype=dtype)
    with torch.autocast(query.device.type, enabled=False):
        for start in range(0, images, at_once):
            part = slice(start, start + at_once)
            keys = key[part].to(dtype).repeat_interleave(heads // key.shape[1], dim=1).mT  # [m,heads,D,N]
            for first in range(0, queries, rows):
                asking = slice(first, first + rows)
                scores = query[part, :, asking].to(dtype) * scale @ keys  # [m,heads,q,N]
                if mask is not None:
                    added = mask[part, :, asking]
                    hides = added.dtype == torch.bool
                    scores = scores.masked_fill(~added, -math.inf) if hides else scores + added.to(dtype)
                received[part] += scores.softmax(-1).sum((1, 2)) / (heads * queries)
    return received


class AttentionWatch:
    """Sees queries and keys of one block as its library hands them to `F.scaled_dot_product_attention`.

    `with AttentionWatch(block) as watch: model(images)`, then `watch.received()`. Norms and rotations of queries and
    keys are thus those of the library.
    """

    def __init__(self, block: nn.Module):
        self.block = block
        self._calls = _Calls()

    def __enter__(self) -> Self:
        def begin(*_: object) -> None:
            self._calls.__enter__()

        def end(*_: object) -> None:
            self._calls.__exit__(None, None, None)

        self._calls.seen.clear()
        self._hooks = [
            self.block.register_forward_pre_hook(begin),
            self.block.register_forward_hook(end, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def received(self) -> Tensor:
        """Log of attention_received, [M,N]; calls for one part of the images each follow one another along M.

        Raises:
            ValueError: the block called no `F.scaled_dot_product_attention`.
        """
        if not self._calls.seen:
            raise ValueError(
                f"attention received cannot be seen: {type(self.block).__name__} does not call "
                "scaled_dot_product_attention; load the teacher without attn_implementation (or with 'sdpa'), or "
                "choose another saliency"
            )
        parts = [attention_received(q, k, scale=scale, mask=mask) for q, k, scale, mask in self._calls.seen]
        received = torch.cat(parts)
        return received.clamp_min(torch.finfo(received.dtype).tiny).log()


class _Calls(TorchFunctionMode):
    """Keeps what `F.scaled_dot_product_attention` is called with: query, key, scale and mask."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor, float | None, Tensor | None]] = []

    @override
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            given = {**dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)), **kwargs}
            self.seen.append((given["query"], given["key"], given.get("scale"), given.get("attn_mask")))
        return func(*args, **kwargs)


def probe_logits(tokens: Tensor, probe: Tensor, to_query: tuple[Tensor, Tensor], to_key: Tensor, heads: int) -> Tensor:
    """Log of the attention that the probe of a pooling head pays to each token, averaged over heads.

    The probe goes through the layer of the keys instead of the tokens: q . (W x) = (q W) . x. What a bias of the keys
    adds is the same for all tokens of a head, and no softmax sees it.

    Args:
        tokens: [M,N,C], what the head pools.
        probe: [C].
        to_query: weight [C,C] and bias [C] of the layer that makes its query.
        to_key: weight [C,C] of the layer that makes keys.
        heads: between which the channels of query and keys are divided.

    Returns:
        [M,N], float32 inside autocast too (float64 stays); exp of it sums to one over N.
    """
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    weight, bias, keys, probe = (x.to(dtype) for x in (*to_query, to_key, probe))
    with torch.autocast(tokens.device.type, enabled=False):
        query = F.linear(probe, weight, bias).unflatten(0, (heads, -1))  # [heads,C/heads]
        probes = torch.einsum("hd,hdc->hc", query, keys.unflatten(0, query.shape))
        scores = torch.einsum("mnc,hc->mhn", tokens.to(dtype), probes) / math.sqrt(query.shape[1])
    return head_mean_log_attention(scores)


def head_mean_log_attention(scores: Tensor) -> Tensor:
    """Scaled products [M,heads,N] -> log of the mean over heads of their softmax over N, [M,N], float32 inside."""
    logs = F.log_softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return logs.logsumexp(dim=1) - math.log(scores.shape[1])
