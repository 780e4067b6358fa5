"""Video LLMs with a LiteFrame encoder: families, prompts, loading, adapters."""
