"""What the plug-ins for vLLM and SGLang share: prompts, pixels and names of weights; knows neither server.

Importing this package imports nothing.
"""

# architectures in an exported config.json; each plug-in's model.py holds a class of each name
ARCHITECTURES = ("LiteFrameInternVLForConditionalGeneration", "LiteFrameLlavaOnevisionForConditionalGeneration")
