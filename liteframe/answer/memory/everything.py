"""The memory that keeps everything: `liteframe ask`, and what the others are compared with."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from liteframe.answer.memory.base import StreamMemory, tokens_of_state, tokens_state
from liteframe.reduce.base import Tokens, join_tokens


class Everything(StreamMemory):
    """Every token of every slot. Grows without bound: 450 KiB a slot of 64 tokens of an 8B model in bfloat16."""

    name = "all"
    append_only = True

    def __init__(self) -> None:
        super().__init__()
        self._clips: list[Tokens] = []

    @override
    def add(self, clip: Tokens) -> None:
        self._clips.append(clip)

    @override
    def context(self, question: str) -> Tokens | None:
        if len(self._clips) > 1:
            self._clips = [join_tokens(self._clips)]
        return self._clips[0] if self._clips else None

    @override
    def state(self) -> dict[str, Tensor]:
        return tokens_state(join_tokens(self._clips)) if self._clips else {}

    @override
    def load_state(self, state: dict[str, Tensor]) -> None:
        self._clips = [tokens_of_state(state)] if state else []

    @override
    def fork(self) -> Everything:
        copy = Everything()
        copy._clips = list(self._clips)
        return copy
