"""The tiny Qwen3-VL of toyworld, untrained: pairs of frames, no cls token, M-RoPE, times in words, no deepstack."""

from __future__ import annotations

from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from liteframe.models.vlm.qwen import CHATML, END, PAD, START
from liteframe.toyworld.model import PATCH, TOKENS_PER_FRAME, build_tokenizer
from liteframe.toyworld.scenes import SIZE

VIDEO_PAD = "<|video_pad|>"
MARKS = {
    "vision_start_token": START,
    "vision_end_token": END,
    "image_token": PAD,
    "video_token": VIDEO_PAD,
}
TIME_WORDS = ("seconds", "<", ">")


def build_qwen_tokenizer() -> PreTrainedTokenizerFast:
    """That of the tiny InternVL with the marks and the words of Qwen3-VL's prompts."""
    return build_tokenizer(TIME_WORDS, MARKS)


def build_qwen_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    """The processor of the tiny Qwen3-VL: 64-pixel frames in pairs, 16 tokens a pair."""
    looks = {"patch_size": PATCH, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    least, most = (2 * PATCH) ** 2, SIZE * SIZE  # pixels of a frame
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**looks, size={"shortest_edge": least, "longest_edge": most}),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(
            **looks, size={"shortest_edge": least, "longest_edge": 64 * most}, max_video_tokens=TOKENS_PER_FRAME
        ),
        chat_template=CHATML,
    )


def build_qwen_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLForConditionalGeneration:
    """The tiny Qwen3-VL with random weights: a tower 128 wide, 6 deep, and a Qwen3 language model 128 wide, 4 deep."""
    names = {"vision_start_token_id": START, "vision_end_token_id": END, "image_token_id": PAD}
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    config = Qwen3VLConfig(
        vision_config={
            "hidden_size": 128,
            "depth": 6,
            "num_heads": 4,
            "intermediate_size": 512,
            "patch_size": PATCH,
            "out_hidden_size": 128,
            "num_position_embeddings": (SIZE // PATCH) ** 2,
            "deepstack_visual_indexes": [],
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "intermediate_size": 384,
            "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5]},
            "tie_word_embeddings": True,
            "initializer_range": 0.05,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        video_token_id=tokenizer.convert_tokens_to_ids(VIDEO_PAD),
        tie_word_embeddings=True,
        **ids,
    )
    return Qwen3VLForConditionalGeneration(config)
