"""Conversations about videos and images: turns, their ChatML, tokens and labels."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PLACEHOLDER = "<video>"
IMAGE = "<image>"
TURN_END = "<|im_end|>"
IGNORE = -100  # label of a token that is not learned, as in transformers
_PLACEHOLDERS = re.compile(f"{PLACEHOLDER}|{IMAGE}")


@dataclass(frozen=True)
class Turn:
    """One message.

    Attributes:
        role: "system", "user" or "assistant".
        text: what is said.
        learned: of an answer, whether training learns it; one that is not is read like a question.
    """

    role: str
    text: str
    learned: bool = True

    def placeholders(self) -> list[str]:
        """`<video>` and `<image>`, in the order in which the text holds them."""
        return _PLACEHOLDERS.findall(self.text)


def is_whole(text: str) -> bool:
    """Whether tokenizers take a text: JSON may hold half of a character, and a command line bytes that are no UTF-8."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def segments(turns: Sequence[Turn], shown: Sequence[str]) -> list[tuple[str, bool]]:
    """ChatML of a conversation up to its last answer, cut into `(text, learned)`.

    Answers and their `<|im_end|>` are learned, except where a turn says otherwise.

    Args:
        turns: of one conversation.
        shown: what stands for each medium, in order.

    Raises:
        ValueError: there are more or fewer of them than placeholders.
    """
    count = sum(len(turn.placeholders()) for turn in turns)
    if count != len(shown):
        raise ValueError(f"the conversation holds {count} placeholders, but {len(shown)} videos and images were given")
    texts = iter(shown)
    cut: list[tuple[str, bool]] = []
    pending = ""
    for turn in turns:
        pending += f"<|im_start|>{turn.role}\n"
        if turn.role == "assistant":
            cut += [(pending, False), (f"{turn.text}{TURN_END}", turn.learned)]
            pending = "\n"
        else:
            pending += f"{_PLACEHOLDERS.sub(lambda _: next(texts), turn.text)}<|im_end|>\n"
    return cut


def encode_conversation(turns: Sequence[Turn], shown: Sequence[str], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids [L] and labels [L], -100 everywhere but on answers and the `<|im_end|>` after each.

    Segments are tokenized one by one, so that no token straddles the border of an answer, and the tokens before an
    answer are those that generation starts from.
    """
    ids: list[int] = []
    labels: list[int] = []
    for text, learned in segments(turns, shown):
        tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        ids += tokens
        labels += tokens if learned else [IGNORE] * len(tokens)
    return ids, labels


def template_warning(processor: Any) -> str | None:
    """A warning if the processor's own chat template writes a question otherwise than training does, else None."""
    if not processor.chat_template:
        return None
    content = [{"type": "video"}, {"type": "text", "text": "Why?"}]
    theirs = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    ours = question_prompt("Why?")
    if theirs == ours:
        return None
    return f"warning: training writes {ours!r}, but the processor's chat template {theirs!r}; ask as training does"


def answer_ends(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: those of the model's generation_config, and the end of a turn."""
    named = model.generation_config.eos_token_id
    ends = [] if named is None else [named] if isinstance(named, int) else list(named)
    return list(dict.fromkeys([*ends, tokenizer.convert_tokens_to_ids(TURN_END)]))


def question_prompt(question: str, system: str | None = None) -> str:
    """The ChatML prompt of one question about one video, up to where the answer starts; holds `<video>` once."""
    return user_prompt(f"{PLACEHOLDER}\n{question}", system)


def user_prompt(text: str, system: str | None = None) -> str:
    """The ChatML prompt of one user turn, up to where the answer starts."""
    turns = [Turn("system", system)] if system else []
    turns += [Turn("user", text)]
    return "".join(f"<|im_start|>{turn.role}\n{turn.text}<|im_end|>\n" for turn in turns) + "<|im_start|>assistant\n"
