"""A tiny Video LLM with a LiteFrame encoder, in parts and whole."""

from worlds.tiny_vlm import encoder, frames, model, processor, prompt, tokenizer, vlm  # noqa: F401  # fixtures
