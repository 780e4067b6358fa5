"""vLLM plug-in: serves exported Video LLMs with a LiteFrame encoder, of all families.

vLLM calls `register` in each of its processes (entry point group `vllm.general_plugins`). Importing this package
imports neither vllm nor torch.
"""

from liteframe_serving import ARCHITECTURES

# architecture -> the class that serves it, which vLLM imports when it needs it
PLACES = {name: f"liteframe_serving.vllm.model:{name}" for name in ARCHITECTURES}


def register() -> None:
    """Make configs and models known to transformers and vLLM; a second call changes nothing."""
    # The models register their configs, so that no remote code is needed; the loader registers itself.
    from vllm import ModelRegistry

    import liteframe.models.vlm.family  # noqa: F401
    import liteframe_serving.vllm.video_loader  # noqa: F401

    known = ModelRegistry.get_supported_archs()
    for architecture, place in PLACES.items():
        if architecture not in known:
            ModelRegistry.register_model(architecture, place)
