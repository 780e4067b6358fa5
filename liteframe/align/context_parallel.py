"""Devices that share the tokens of each conversation, for prompts that one of them has no room for.

The first of them reads the files, and hands its batch to the others; each encodes its share of the clips, and reads
its share of the tokens (liteframe.models.vlm.context_parallel). What a step learns is what one device would learn.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import Sampler
from typing_extensions import override

from liteframe.align.batch import ChatBatch
from liteframe.data.stream import Key
from liteframe.models.vlm.context_parallel import Gather


class ContextShares:
    """The devices of this process's group. All processes must make it, at the same time.

    Args:
        devices: of a group; divides the number of processes.
    """

    def __init__(self, devices: int) -> None:
        self.group, _ = dist.new_subgroups(devices)
        self.rank = self.group.rank()
        self.first = dist.get_global_rank(self.group, 0)

    def batch(self, own: ChatBatch) -> ChatBatch:
        """The batch of the group's first process, which alone has read one."""
        handed: list[Any] = [own if self.rank == 0 else None]
        dist.broadcast_object_list(handed, self.first, self.group)
        return handed[0]

    def share_clips(self, tower: nn.Module) -> None:
        """Let each device encode its share of the clips that a frozen encoder is given.

        Args:
            tower: pixels [n,t,3,H,W] -> `last_hidden_state` [n,t',h,w,C].
        """
        counts: list[int] = []

        def own(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            pixels = arguments[0]
            counts.append(len(pixels))
            share = -(-len(pixels) // self.group.size())
            # The last devices repeat a clip where there are too few.
            rows = torch.arange(self.rank * share, (self.rank + 1) * share).clamp(max=len(pixels) - 1)
            return (pixels[rows.to(pixels.device)], *arguments[1:])

        def of_all(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
            everyone = Gather.apply(output.last_hidden_state, self.group)  # [S,n/S,t',h,w,C]
            output.last_hidden_state = everyone.flatten(0, 1)[: counts.pop()]
            return output

        tower.register_forward_pre_hook(own)
        tower.register_forward_hook(of_all)


class NoKeys(Sampler[list[Key]]):
    """A stream that is as long as another, and has nothing in any batch: of processes that are handed theirs."""

    def __init__(self, stream: Sampler[list[Key]]):
        self.stream = stream

    def __len__(self) -> int:
        """Batches of a full pass."""
        return len(self.stream)  # type: ignore[arg-type]

    @override
    def __iter__(self) -> Iterator[list[Key]]:
        return ([] for _ in self.stream)
