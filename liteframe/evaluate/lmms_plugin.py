"""LiteFrame for lmms-eval, found through the entry point group `lmms_eval.models`; imports lmms-eval when asked.

lmms-eval --model liteframe --model_args pretrained=my_vlm,frames=64 --tasks videomme
"""

from typing import Any


def manifest() -> Any:
    """What lmms-eval's registry wants to know."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="liteframe", chat_class_path="liteframe.evaluate.lmms_model.LiteFrameChat")
