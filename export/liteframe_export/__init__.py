"""What takes an encoder or a Video LLM to other software: Hugging Face folders, ONNX and torch.export graphs."""
