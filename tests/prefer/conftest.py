"""The tiny Video LLM of worlds/tiny_vlm.py."""

from worlds.tiny_vlm import encoder, frames, model, processor, prompt, tokenizer, vlm  # noqa: F401  # fixtures
