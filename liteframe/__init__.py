"""LiteFrame: distil a small video encoder from a large image teacher, align it, export it.

The names below are imported when they are first used, so that tools which need no torch start at once.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from liteframe.answer.ask import ask as ask
    from liteframe.answer.encode import encode_video as encode_video
    from liteframe.answer.memory import memories as memories
    from liteframe.answer.session import StreamSession as StreamSession
    from liteframe.models.student.config import LiteFrameConfig as LiteFrameConfig
    from liteframe.models.student.cost import cost as cost
    from liteframe.models.student.encoder import LiteFrameEncoder as LiteFrameEncoder
    from liteframe.models.teacher.load import load_teacher as load_teacher
    from liteframe.models.vlm.load import load_video_llm as load_video_llm
    from liteframe.reduce import reducers as reducers
    from liteframe.reduce.wap import weighted_average_pool as weighted_average_pool

__version__ = "0.1.0"

_HOME = {
    "LiteFrameConfig": "liteframe.models.student.config",
    "LiteFrameEncoder": "liteframe.models.student.encoder",
    "load_teacher": "liteframe.models.teacher.load",
    "weighted_average_pool": "liteframe.reduce.wap",
    "reducers": "liteframe.reduce",
    "encode_video": "liteframe.answer.encode",
    "cost": "liteframe.models.student.cost",
    "load_video_llm": "liteframe.models.vlm.load",
    "ask": "liteframe.answer.ask",
    "StreamSession": "liteframe.answer.session",
    "memories": "liteframe.answer.memory",
}
__all__ = [
    "LiteFrameConfig",
    "LiteFrameEncoder",
    "StreamSession",
    "ask",
    "cost",
    "encode_video",
    "load_teacher",
    "load_video_llm",
    "memories",
    "reducers",
    "weighted_average_pool",
]

# What libraries print of themselves on a first run, by logger: an optional kernel for 4-bit layers on a CPU, which PEFT
# brings up in every process, and attempts to reach a hub, after which an error says what is not at hand.
_UNASKED = {
    "bitsandbytes.backends.cpu.ops": ("from kernels-community",),
    "huggingface_hub.utils._http": ("thrown while requesting", "Retrying in"),
}


def _asked(record: logging.LogRecord) -> bool:
    return not any(part in str(record.msg) for part in _UNASKED[record.name])


for _name in _UNASKED:
    logging.getLogger(_name).addFilter(_asked)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'liteframe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
