"""How many tokens conversations take, so that those too long for the language model are refused before a run."""

from collections.abc import Sequence

from liteframe.align.conversation_rows import Conversation
from liteframe.models.vlm.chat import encode_conversation
from liteframe.models.vlm.modes import text_tokens, video_tokens
from liteframe.models.vlm.processor import LiteFrameProcessor
from liteframe.training.failures import BadConversationsError

# Around a turn: two marks, a role of at most two tokens, two line breaks.
TOKENS_OF_A_TURN = 6
EXAMPLES = 5


def check_lengths(
    conversations: Sequence[Conversation],
    processor: LiteFrameProcessor,
    budgets: Sequence[int],
    limit: int,
    reason: str = "the language model reads",
) -> int:
    """Refuse budgets of frames and conversations of more than `limit` tokens.

    Text has no more tokens than bytes, so only what might be too long is tokenized.

    Args:
        conversations: what to learn.
        processor: of the Video LLM.
        budgets: numbers of frames that the videos of a conversation may have together; all are taken to be as long as
            the largest.
        limit: tokens that the language model reads.
        reason: who has that limit, in words behind "tokens that".

    Returns:
        Tokens of a video of the largest budget.

    Raises:
        ValueError: one video of the largest budget is too long.
        BadConversationsError: names the first of the conversations that are too long by their numbers.
    """
    frames = max(budgets)
    longest = video_tokens(processor, frames)
    if longest >= limit:
        raise ValueError(
            f"data.frames={list(budgets)}: {frames} frames take {longest} tokens, of {limit} that {reason}; use fewer "
            "frames"
        )
    image = processor.image_text(processor.tokens_per_slot(*processor.frame_size))
    image_tokens, videos_by_share, too_long = text_tokens(processor, image), {}, []
    for number, conversation in enumerate(conversations):
        videos = sum(medium.kind != "image" for medium in conversation.media)
        share = max(1, frames // max(1, videos))
        if share not in videos_by_share:
            text = _video_text(processor, share)
            videos_by_share[share] = (text, text_tokens(processor, text))
        video, tokens = videos_by_share[share]
        most = videos * tokens + (len(conversation.media) - videos) * image_tokens
        most += max(sum(len(t.text.encode()) + TOKENS_OF_A_TURN for t in turns) for turns in conversation.versions)
        if most > limit:
            texts = [image if medium.kind == "image" else video for medium in conversation.media]
            encoded = (encode_conversation(turns, texts, processor.tokenizer) for turns in conversation.versions)
            length = max(len(ids) for ids, _ in encoded)
            if length > limit:
                too_long.append(f"  number {number}: {length} tokens")
    if too_long:
        raise BadConversationsError(
            f"{len(too_long)} of {len(conversations)} conversations are longer than the {limit} tokens that {reason}, "
            f"with videos of {frames} frames:\n"
            + "\n".join(too_long[:EXAMPLES])
            + "\nUse fewer data.frames, or shorten or remove their rows (`liteframe preview --row NUMBER` shows one)"
        )
    return longest


def _video_text(processor: LiteFrameProcessor, frames: int) -> str:
    return processor.video_text(processor.slots(frames, *processor.frame_size))
