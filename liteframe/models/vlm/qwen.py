"""What the families of the Qwen-VL kind share: merging, prompts, positions on three axes.

The tower's merger, a norm and an MLP over blocks of 2 x 2 patches, is the projector here; a student's features take the
places of what the tower gives it. Images and videos share one placeholder token.
This file travels inside exported models: it imports torch, transformers and the encoder, nothing else.
"""

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken
from torch import Tensor
from transformers import LlavaOnevisionVideoProcessor
from typing_extensions import override

from liteframe.models.vlm.base import VlmBackbone
from liteframe.models.vlm.mrope import Mrope
from liteframe.models.vlm.processor import LiteFrameProcessor, Times

START, END, PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
VIDEO = "<video>"  # of a prompt that is not expanded yet

# As LMA writes conversations; a checkpoint's own template may put marks of vision around a video, which are ours here.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<video>\n{% elif part['type'] == 'image' %}<|image_pad|>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class QwenBackbone(VlmBackbone):
    """Mix-in of a model without head of the Qwen-VL kind."""

    counts_itself = False

    @override
    def merge_patches(self, grid: Tensor) -> Tensor:
        """[T',h,w,C] -> [T',h/m,w/m,m*m,C], the blocks that the merger makes tokens of."""
        return merge_blocks(grid, self.config.vision_config.spatial_merge_size)


def merge_blocks(grid: Tensor, m: int) -> Tensor:
    """What a merger takes: [...,h,w,C] -> [...,h/m,w/m,m*m,C], the members of a block row by row.

    Raises:
        ValueError: m does not divide h or w.
    """
    height, width = grid.shape[-3:-1]
    if height % m or width % m:
        raise ValueError(f"a {height}x{width} token grid cannot be merged {m}x{m}; resize the frames")
    blocks = grid.unflatten(-2, (-1, m)).unflatten(-4, (-1, m))  # [...,h/m,m,w/m,m,C]
    return blocks.transpose(-4, -3).flatten(-3, -2).contiguous()


class QwenProcessor(LiteFrameProcessor):
    """Prompts of a Video LLM of the Qwen-VL kind with a LiteFrame encoder.

    Args:
        tokenizer: the checkpoint's; `<video>` is added to it where it lacks it, and never reaches the model.
        video_processor: resizes to the encoder's frame size and gives frames, see frames_of.
        chat_template: ChatML, where a video of a turn is `<video>`.
        frames_per_slot: frames that the encoder merges into one token grid.
        pixels_per_token: side in pixels of the square that one image token stands for (56 = patch 14, stride 2, merger
            2).
        resize: "squash", "crop" or "aspect", see LiteFrameProcessor.
    """

    needs_times = True

    def __init__(
        self,
        tokenizer: Any = None,
        video_processor: Any = None,
        chat_template: str | None = CHATML,
        frames_per_slot: int = 4,
        pixels_per_token: int = 56,
        resize: str = "squash",
    ):
        super().__init__(tokenizer, video_processor, chat_template=chat_template)
        self.frames_per_slot = frames_per_slot
        self.pixels_per_token = pixels_per_token
        self.resize = resize
        self.image_token, self.video_token = PAD, VIDEO
        self.image_token_id = tokenizer.convert_tokens_to_ids(PAD)
        if VIDEO not in tokenizer.get_vocab():
            tokenizer.add_tokens([AddedToken(VIDEO, special=True)], special_tokens=True)

    @override
    def image_text(self, tokens: int) -> str:
        """Image tokens between the marks of vision."""
        return f"{START}{PAD * tokens}{END}"


class TimedTextProcessor(QwenProcessor):
    """Prompts in which each slot stands by itself behind its time, the mean of its first and its last frame."""

    mrope = Mrope()

    @override
    def video_text(self, slots: Sequence[tuple[int, int, int]], times: Times | None = None) -> str:
        """`<0.8 seconds>` and the slot's tokens, slot after slot."""
        return timed_text(slots, times, PAD)


def timed_text(slots: Sequence[tuple[int, int, int]], times: Times | None, token: str) -> str:
    """Slots behind their times; `times` as of LiteFrameProcessor.video_text, `token` the placeholder of a feature."""
    spans = [(float(first), float(last)) for first, last, _ in slots] if times is None else times
    return "".join(
        f"<{(first + last) / 2:.1f} seconds>{START}{token * tokens}{END}"
        for (_, _, tokens), (first, last) in zip(slots, spans, strict=True)
        if tokens
    )


def frames_of(video_processor: Any) -> LlavaOnevisionVideoProcessor:
    """A video processor that gives frames of one size, normalized as this one does, which gives flattened patches."""
    size = {"height": 1, "width": 1}  # the encoder's, set by whoever knows it
    names = ("image_mean", "image_std", "resample", "do_rescale", "rescale_factor", "do_normalize")
    return LlavaOnevisionVideoProcessor(size=size, **{name: getattr(video_processor, name) for name in names})
