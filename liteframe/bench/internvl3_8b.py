"""The configuration of `OpenGVLab/InternVL3-8B-hf` as published, for checks and measurements without its weights.

Source: methods of InternVL3 (arXiv 2504.10479): InternViT-300M-448px-V2_5, two-layer projector, Qwen2.5-7B.
"""

from transformers import InternVLConfig


def internvl3_8b_config() -> InternVLConfig:
    """Vision 24 x 1024 at 448 pixels and patches of 14, language model 28 x 3584."""
    vision = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "image_size": [448, 448],
        "patch_size": [14, 14],
        "attention_bias": True,
        "use_qk_norm": False,
        "use_mean_pooling": True,
        "norm_type": "layer_norm",
        "layer_norm_eps": 1e-6,
        "layer_scale_init_value": 0.1,
        "hidden_act": "gelu",
    }
    text = {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "vocab_size": 151674,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    }
    return InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=151667,
        image_seq_length=256,
        downsample_ratio=0.5,
        projector_hidden_act="gelu",
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
