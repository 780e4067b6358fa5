"""Prompts and pixels for a LLaVA-OneVision with a LiteFrame encoder.

A video is the image tokens of its slots, one after another, and one for the newline vector that ends it.
This file travels inside exported models: it imports transformers and its neighbour, nothing else.
"""

from typing import Any

from .processor import LiteFrameProcessor

# As the conversations that LLaVA-OneVision was trained on, and as LMA writes them.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<video>\n{% elif part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class LiteFrameLlavaOnevisionProcessor(LiteFrameProcessor):
    """Prompts of a LLaVA-OneVision with a LiteFrame encoder.

    Args:
        tokenizer: LLaVA-OneVision's, which knows the tokens `<image>` and `<video>`.
        video_processor: LLaVA-OneVision's, resizing to the encoder's frame size.
        chat_template: ChatML, where a video of a turn is `<video>`.
        frames_per_slot: frames that the encoder merges into one token grid.
        pixels_per_token: side in pixels of the square that one image token stands for (28 = patch 14, stride 2).
    """

    def __init__(
        self,
        tokenizer: Any = None,
        video_processor: Any = None,
        chat_template: str | None = CHATML,
        frames_per_slot: int = 4,
        pixels_per_token: int = 28,
    ):
        super().__init__(tokenizer, video_processor, chat_template=chat_template)
        self.frames_per_slot = frames_per_slot
        self.pixels_per_token = pixels_per_token
        self.image_token, self.video_token = "<image>", "<video>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)

    def slot_prompt(self, frames: int, height: int, width: int) -> str:
        """Image tokens of all slots, and one for the newline vector."""
        slots = -(-frames // self.frames_per_slot)
        return self.image_token * (slots * self.tokens_per_slot(height, width) + 1)

    def image_prompt(self, height: int, width: int) -> str:
        """An image is a video of one frame."""
        return self.slot_prompt(1, height, width)
