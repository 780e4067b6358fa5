"""Names of weights in an exported checkpoint, and in a server's model."""

# The checkpoint's beginnings of names -> the server's. The tower and the projector keep the rest of their names; the
# language model's layers are then fused by the server itself (q, k, v to qkv; gate, up to gate_up). The newline is
# LLaVA-OneVision's.
PREFIXES = {
    "lm_head.": "language_model.lm_head.",
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.image_newline": "image_newline",
}


def served_name(name: str) -> str:
    """A checkpoint's name -> the server's.

    Raises:
        ValueError: the name belongs to no part of the model.
    """
    for old, new in PREFIXES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise ValueError(f"{name} is no weight of a Video LLM with a LiteFrame encoder")
