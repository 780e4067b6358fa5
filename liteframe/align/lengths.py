"""Conversations that the language model cannot read as a whole, found before the run meets them."""

from collections.abc import Sequence
from typing import Any

from liteframe.data.chat import Conversation, encode_conversation
from liteframe.data.conversation_files import BadConversationsError

# Around a turn: two marks, a role of at most two tokens, two line breaks.
TOKENS_OF_A_TURN = 6
EXAMPLES = 5


def check_lengths(conversations: Sequence[Conversation], processor: Any, frames: int, limit: int) -> None:
    """Refuse conversations of more than `limit` tokens.

    Text has no more tokens than bytes, so only what might be too long is tokenized.

    Args:
        conversations: what to learn.
        processor: of the Video LLM.
        frames: the most that the videos of a conversation may have together; all are taken to be so long.
        limit: tokens that the language model reads.

    Raises:
        BadConversationsError: names the first of them by their numbers.
    """
    size, shares = processor.frame_size, {}
    image = processor.image_prompt(*size)

    def count(text: str) -> int:
        return len(processor.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    long, images = [], count(image)
    for number, conversation in enumerate(conversations):
        videos = sum(medium.kind != "image" for medium in conversation.media)
        share = max(1, frames // max(1, videos))
        if share not in shares:
            text = processor.slot_prompt(share, *size)
            shares[share] = (text, count(text))
        video, tokens = shares[share]
        most = videos * tokens + (len(conversation.media) - videos) * images
        most += sum(len(turn.text.encode()) + TOKENS_OF_A_TURN for turn in conversation.turns)
        if most > limit:
            shown = [image if medium.kind == "image" else video for medium in conversation.media]
            found = len(encode_conversation(conversation.turns, shown, processor.tokenizer)[0])
            if found > limit:
                long.append(f"  number {number}: {found} tokens")
    if long:
        raise BadConversationsError(
            f"{len(long)} of {len(conversations)} conversations are longer than the {limit} tokens that the language "
            f"model reads, with videos of {frames} frames:\n"
            + "\n".join(long[:EXAMPLES])
            + "\nUse fewer data.frames, or shorten or remove their rows (`liteframe preview --row NUMBER` shows one)"
        )
