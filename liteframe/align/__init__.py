"""Language model alignment (LMA): LoRA on the language model of a Video LLM that has a LiteFrame encoder."""
