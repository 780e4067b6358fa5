"""What the plug-ins for vLLM and SGLang share: prompts, pixels and names of weights; knows neither server."""
