"""SGLang plug-in: serves exported Video LLMs with a LiteFrame encoder, of all families.

SGLang calls `register` in its processes (entry point group `sglang.srt.plugins`). Importing this package imports
neither sglang nor torch.
"""

from liteframe_serving import ARCHITECTURES


def register() -> None:
    """Make configs, processors and models known to transformers and SGLang; a second call changes nothing."""
    from sglang.srt.configs.model_config import multimodal_model_archs
    from sglang.srt.managers.multimodal_processor import import_processors
    from sglang.srt.models.registry import ModelRegistry

    import liteframe.models.vlm.family  # noqa: F401  # registers configs and processors: no remote code is needed

    multimodal_model_archs.extend(name for name in ARCHITECTURES if name not in multimodal_model_archs)
    ModelRegistry.register(__name__, overwrite=True, strict=True)
    import_processors(__name__)
