"""Teachers: frozen towers of timm and transformers that turn video into patch features and a saliency."""
