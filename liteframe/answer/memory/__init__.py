"""Memories of a streaming session by name: `memories["window"](budget)`, or `parse_memory("window:4096")`."""

from __future__ import annotations

from collections.abc import Callable

from liteframe.answer.memory.bank import BankMemory
from liteframe.answer.memory.base import StreamMemory
from liteframe.answer.memory.bilevel import BiLevelCache
from liteframe.answer.memory.cache import SinkWindow
from liteframe.answer.memory.clips import ClipMemories
from liteframe.answer.memory.everything import Everything
from liteframe.answer.memory.learned_clips import LearnedClips
from liteframe.answer.memory.qformer import QFormerMemory
from liteframe.answer.memory.saliency import SaliencyCache
from liteframe.answer.memory.slots import Halving, Random, Window
from liteframe.answer.memory.summary import SummaryCache

memories: dict[str, Callable[..., StreamMemory]] = {
    memory.name: memory
    for memory in (
        *(Everything, Window, Halving, Random, SinkWindow),
        *(BankMemory, ClipMemories, SaliencyCache, BiLevelCache, SummaryCache, LearnedClips, QFormerMemory),
    )
}


def parse_memory(text: str) -> StreamMemory:
    """The memory that a command line names: `NAME:BUDGET`, the budget in tokens of the language model, or `all`.

    Raises:
        ValueError: there is no such memory, or no budget where one is needed.
    """
    name, colon, budget = text.partition(":")
    if name not in memories:
        raise ValueError(f"--memory {text}: there is no memory {name!r}; expected one of {', '.join(memories)}")
    if name == Everything.name:
        if colon:
            raise ValueError(f"--memory {text}: {name!r} keeps everything and takes no budget; give --memory {name}")
        return memories[name]()
    if not (budget.isascii() and budget.isdigit()):
        raise ValueError(f"--memory {text}: {name!r} needs a budget in tokens, such as --memory {name}:4096")
    return memories[name](int(budget))
