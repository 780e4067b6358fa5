"""Small random Video LLMs, as ordinary transformers checkpoints."""

import torch
from tokenizers import AddedToken
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
)

from liteframe.answer.session import StreamSession
from liteframe.toyworld.model import CHAT_TEMPLATE, build_model, build_processor, build_tokenizer


def stir(model, std=0.1, but=None):
    """Weights large enough that logits differ as those of trained models do; the parameter `but` stays as it is."""
    for parameter in model.parameters():
        if parameter.ndim == 2 and parameter is not but:
            torch.nn.init.normal_(parameter, std=std)
    return model


def random_internvl(**vision):
    """ViT of 32 channels, 4 heads, 3 blocks on 4x4 patches, unless told otherwise; a language model of one layer."""
    vision = {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
        "image_size": [32, 32], "patch_size": [8, 8], "attention_bias": True, **vision,
    }  # fmt: skip
    text = {
        "model_type": "qwen2", "vocab_size": 100, "hidden_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64,
    }  # fmt: skip
    return InternVLForConditionalGeneration(InternVLConfig(vision_config=vision, text_config=text))


def make_internvl(folder, seed=0, std=0.1, sharpness=1.0):
    """InternViT 128 x 6 with cls token at 64 pixels, 2 x 2 pixel shuffle, Qwen2 128 x 4.

    Args:
        folder: where it is saved, with its processor.
        seed: of its weights.
        std: of its matrices; None leaves them as they start.
        sharpness: what its tied embeddings are multiplied by.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    if std is not None:
        stir(model, std)
    with torch.no_grad():
        model.lm_head.weight.mul_(sharpness)
    model.save_pretrained(folder)
    build_processor(tokenizer).save_pretrained(folder)
    return folder


def make_llava_onevision(folder, seed=0, **vision):
    """SigLIP 32 x 2 without cls token or head, at 76 pixels: 9 x 9 patches of 8, like 27 x 27 of 14 in 384.

    Heads of 32 in the language model are the smallest that vLLM's CPU kernels take.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([AddedToken("<image>", special=True)], special_tokens=True)
    config = LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "patch_size": 8, "image_size": 76, "vision_use_head": False, **vision,
        },
        text_config={
            "model_type": "qwen2", "vocab_size": len(tokenizer), "hidden_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64,
            "max_position_embeddings": 8192, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[76, 76]],
    )  # fmt: skip
    stir(LlavaOnevisionForConditionalGeneration(config)).save_pretrained(folder)
    looks = {"size": {"height": 76, "width": 76}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(**looks, image_grid_pinpoints=[[76, 76]]),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(**looks),
        num_image_tokens=81,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    return folder


def answer_about(model, processor, frames, question, **settings):
    """The greedy answer of a session that was shown all frames at once."""
    session = StreamSession(model, processor)
    session.add(frames)
    return session.ask(question, **settings).text
