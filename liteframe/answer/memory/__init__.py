"""Memories of a streaming session by name: `memories["all"]()`."""

from __future__ import annotations

from collections.abc import Callable

from liteframe.answer.memory.base import StreamMemory
from liteframe.answer.memory.everything import Everything

memories: dict[str, Callable[..., StreamMemory]] = {memory.name: memory for memory in (Everything,)}
