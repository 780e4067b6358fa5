"""The tiny InternVL of toyworld, untrained: an ordinary transformers checkpoint with its tokenizer and processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
)

from liteframe.models.checkpoints import SHIPPED
from liteframe.toyworld.questions import vocabulary_texts
from liteframe.toyworld.scenes import SIZE

CHECKPOINT = Path(SHIPPED["toyworld"])  # the trained one, shipped with the package
PATCH = 8
TOKENS_PER_FRAME = (SIZE // PATCH // 2) ** 2
MAX_FRAME_NUMBER = 512
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

# ChatML, as InternVL3's own template lays it out: a video stands before the text of its turn, on a line of its own.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif part['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


MARKS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def build_tokenizer(further: Sequence[str] = (), marks: Mapping[str, str] = MARKS) -> PreTrainedTokenizerFast:
    """A word-level tokenizer: words, whole numbers, punctuation and line breaks are tokens; spaces are dropped.

    Args:
        further: words that it knows, too; the numbers of the others do not depend on them.
        marks: the control tokens of a family's prompts, by the attribute of the tokenizer that holds each.
    """
    special = ["<|endoftext|>", "<unk>", "<|im_start|>", "<|im_end|>", *marks.values()]
    words = sorted({word for text in vocabulary_texts() for word in text.replace("?", " ").replace(",", " ").split()})
    words += ["system", "user", "assistant", "Frame", "?", ",", ".", ":", "-", "\n"]
    words += [str(n) for n in range(MAX_FRAME_NUMBER + 1)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*special, *words, *further]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    pieces = Regex(r"\n|[A-Za-z]+|\d+|[^\sA-Za-z\d]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="removed", invert=True)
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens=dict(marks),
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> InternVLProcessor:
    """The processor of the tiny InternVL: 64-pixel frames, ImageNet statistics, 16 tokens a frame."""
    shared = {
        "size": {"height": SIZE, "width": SIZE},
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
    }
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(**shared),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(**shared),
        image_seq_length=TOKENS_PER_FRAME,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> InternVLForConditionalGeneration:
    """The tiny InternVL with random weights: a ViT 128 wide, 6 deep, and a Qwen2 language model 128 wide, 4 deep."""
    config = InternVLConfig(
        vision_config={
            "hidden_size": 128,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "intermediate_size": 512,
            "image_size": [SIZE, SIZE],
            "patch_size": [PATCH, PATCH],
            "attention_bias": True,
            "use_mean_pooling": True,
            "layer_scale_init_value": 0.5,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 384,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
            "initializer_range": 0.05,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=TOKENS_PER_FRAME,
        downsample_ratio=0.5,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    return InternVLForConditionalGeneration(config)
