"""vLLM plug-in: serves exported InternVL-family Video LLMs with a LiteFrame encoder.

vLLM calls `register` in each of its processes (entry point group `vllm.general_plugins`). Importing this package
imports neither vllm nor torch.
"""

# architecture in an exported config.json -> the class that serves it, which vLLM imports when it needs it
ARCHITECTURES = {
    "LiteFrameInternVLForConditionalGeneration": "liteframe_vllm.model:LiteFrameInternVLForConditionalGeneration"
}


def register() -> None:
    """Make config and model known to transformers and vLLM; a second call changes nothing."""
    from vllm import ModelRegistry

    import liteframe.models.internvl  # noqa: F401 - registers the config, so that no remote code is needed

    known = ModelRegistry.get_supported_archs()
    for architecture, place in ARCHITECTURES.items():
        if architecture not in known:
            ModelRegistry.register_model(architecture, place)
