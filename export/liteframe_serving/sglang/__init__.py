"""SGLang plug-in: serves exported Video LLMs with a LiteFrame encoder, InternVL and LLaVA-OneVision.

SGLang calls `register` in its processes (entry point group `sglang.srt.plugins`). Importing this package imports
neither sglang nor torch.
"""

from liteframe_serving import ARCHITECTURES


def register() -> None:
    """Make configs, processors and models known to transformers and SGLang; a second call changes nothing."""
    from sglang.srt.configs.model_config import multimodal_model_archs
    from sglang.srt.managers.multimodal_processor import import_processors
    from sglang.srt.models.registry import ModelRegistry
    from transformers import AutoProcessor

    from liteframe.models.vlm.internvl import LiteFrameInternVLConfig
    from liteframe.models.vlm.llava_onevision import LiteFrameLlavaOnevisionConfig
    from liteframe.models.vlm.processor import LiteFrameInternVLProcessor, LiteFrameLlavaOnevisionProcessor

    # Importing the two configs has registered them. With their processors here too, no remote code is needed.
    AutoProcessor.register(LiteFrameInternVLConfig, LiteFrameInternVLProcessor, exist_ok=True)
    AutoProcessor.register(LiteFrameLlavaOnevisionConfig, LiteFrameLlavaOnevisionProcessor, exist_ok=True)
    multimodal_model_archs.extend(name for name in ARCHITECTURES if name not in multimodal_model_archs)
    ModelRegistry.register(__name__, overwrite=True, strict=True)
    import_processors(__name__)
