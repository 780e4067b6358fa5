"""What the plug-ins for vLLM and SGLang share: prompts, pixels and names of weights; knows neither server.

Importing this package imports nothing.
"""

# architectures in an exported config.json, one a family (a test compares); each plug-in serves a class of each name
ARCHITECTURES = (
    "LiteFrameInternVLForConditionalGeneration",
    "LiteFrameLlavaOnevisionForConditionalGeneration",
    "LiteFrameQwen2_5_VLForConditionalGeneration",
    "LiteFrameQwen3VLForConditionalGeneration",
    "LiteFrameQwen3_5ForConditionalGeneration",
)
