"""Small random Video LLMs, as ordinary transformers checkpoints."""

import copy
from functools import partial

import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5Tokenizer,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from liteframe.answer.session import StreamSession
from liteframe.models.vlm.clip_summarizer import ClipSettings, add_clip_summarizer
from liteframe.models.vlm.qformer import QFormerSettings, add_qformer
from liteframe.models.vlm.summary_tokens import SummarySettings, add_summary_tokens
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


QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def qwen_tokenizer(cls=Qwen2Tokenizer):
    """A tokenizer of single bytes, with the marks of the Qwen-VL kind; Qwen3.5 is read with its own class."""
    marks = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *QWEN_TOKENS)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = cls(
        vocab={token: number for number, token in enumerate(alphabet)}, merges=[], unk_token=None,
        eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=8192, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.add_tokens([AddedToken(token, special=True) for token in marks], special_tokens=True)
    return tokenizer


def qwen_ids(tokenizer):
    """What configs of the Qwen-VL kind say of a tokenizer."""
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return dict(zip(names, tokenizer.convert_tokens_to_ids(list(QWEN_TOKENS)), strict=True))


def make_qwen2_5_vl(folder, seed=0, **vision):
    """Tower 32 x 3 over pairs of frames, windows of 32 pixels in all blocks but the second; Qwen2.5 64 x 2, M-RoPE."""
    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer()
    config = Qwen2_5_VLConfig(
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "depth": 3, "num_heads": 4, "patch_size": 8,
            "window_size": 32, "fullatt_block_indexes": [1], "out_hidden_size": 64, "tokens_per_second": 2, **vision,
        },
        text_config={
            "vocab_size": len(tokenizer) + 8, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "intermediate_size": 64, "max_position_embeddings": 8192, "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
        },
        **qwen_ids(tokenizer),
    )  # fmt: skip
    stir(Qwen2_5_VLForConditionalGeneration(config)).save_pretrained(folder)
    looks = {"patch_size": 8, "size": {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}}
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**looks),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**looks),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    return folder


def make_qwen3_vl(folder, seed=0, deepstack=(0,), **vision):
    """Tower 32 x 2 over pairs of frames with a learned 6 x 6 position table; Qwen3 64 x 2 with M-RoPE.

    Args:
        folder: where it is saved, with its processor.
        seed: of its weights.
        deepstack: blocks of the tower whose features the language model reads too.
        **vision: further fields of the tower's config.
    """
    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer()
    config = Qwen3VLConfig(
        vision_config={**QWEN3_TOWER, "deepstack_visual_indexes": list(deepstack), **vision},
        text_config=_qwen3_text(
            tokenizer, head_dim=32, rope_parameters={"rope_theta": 1e4, "mrope_section": [6, 5, 5]}
        ),
        **qwen_ids(tokenizer),
    )
    return _save_qwen3(Qwen3VLForConditionalGeneration(config), tokenizer, folder)


def make_qwen3_5(folder, seed=0, **vision):
    """As make_qwen3_vl, without deepstack; of the language model's two layers one is a Gated DeltaNet."""
    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer(Qwen3_5Tokenizer)
    config = Qwen3_5Config(
        vision_config={**QWEN3_TOWER, **vision},
        text_config=_qwen3_text(
            tokenizer, head_dim=64, layer_types=["linear_attention", "full_attention"],
            linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=16, linear_value_head_dim=16,
            rope_parameters={"rope_theta": 1e4, "mrope_section": [4, 2, 2], "partial_rotary_factor": 0.25},
        ),
        **qwen_ids(tokenizer),
    )  # fmt: skip
    return _save_qwen3(Qwen3_5ForConditionalGeneration(config), tokenizer, folder)


QWEN3_TOWER = {
    "hidden_size": 32, "intermediate_size": 48, "depth": 2, "num_heads": 4, "patch_size": 8, "out_hidden_size": 64,
    "num_position_embeddings": 36,
}  # fmt: skip


def _qwen3_text(tokenizer, **further):
    return {
        "vocab_size": len(tokenizer) + 8, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 64, "max_position_embeddings": 8192,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, **further,
    }  # fmt: skip


def _save_qwen3(model, tokenizer, folder):
    stir(model).save_pretrained(folder)
    looks = {"patch_size": 8, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**looks, size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64}),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(
            **looks, size={"shortest_edge": 32 * 32, "longest_edge": 32 * 64 * 64}, max_video_tokens=16
        ),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    return folder


def answer_about(model, processor, frames, question, times=None, **settings):
    """The greedy answer of a session that was shown all frames at once."""
    session = StreamSession(model, processor)
    session.add(frames, times, every=True)
    return session.ask(question, **settings).text


def with_summary_tokens(pair, seed=0, **settings):
    """A copy of a model that has learned something random of summary tokens, and its processor."""
    model, processor = copy.deepcopy(pair[0]), pair[1]
    torch.manual_seed(seed)
    tokens = add_summary_tokens(model, processor, SummarySettings(**settings)).requires_grad_(False)
    for name, weights in tokens.named_parameters():
        if name.endswith("up"):
            torch.nn.init.normal_(weights, std=0.3)
    return model, processor


def with_clip_summarizer(pair, seed=0, std=0.0, **settings):
    """A copy of a model with a clip summarizer that reads in its own way, and its processor.

    Args:
        pair: model and processor.
        seed: of its weights.
        std: of the map from what it reads to memories; 0 leaves these the means of clips.
        settings: of ClipSettings.
    """
    model, processor = copy.deepcopy(pair[0]), pair[1]
    torch.manual_seed(seed)
    summarizer = add_clip_summarizer(model, processor, ClipSettings(**settings)).requires_grad_(False)
    for weights in (summarizer.summary, summarizer.indicator):
        torch.nn.init.normal_(weights, std=0.3)
    torch.nn.init.normal_(summarizer.residual.weight, std=std)
    return model, processor


def with_qformer(pair, seed=0, **settings):
    """A copy of a model with a random Q-Former that it can hear, and its processor."""
    model, processor = copy.deepcopy(pair[0]), pair[1]
    torch.manual_seed(seed)
    former = add_qformer(model, processor, QFormerSettings(**settings)).requires_grad_(False).eval()
    torch.nn.init.normal_(former.queries, std=1.0)
    torch.nn.init.normal_(former.out.weight, std=0.3)
    return model, processor


# By the memory that reads with what was learned.
TRAINED = {
    "summary": with_summary_tokens,
    "learned_clips": partial(with_clip_summarizer, slots_per_clip=1),
    "qformer": partial(with_qformer, queries=3, layers=2, width=64),
}
