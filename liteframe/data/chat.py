"""Conversations about videos: JSONL rows, checked where they are read, and their tokens and labels.

A row is `{"video": path, "start"?, "end"?, "conversations": [{"from": "human"|"gpt"|"system", "value": text}]}`, with
the placeholder `<video>` in the first human turn (put before it when missing), as InternVL's training data.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liteframe.data.manifest import VideoEntry, load_manifest

PLACEHOLDER = "<video>"
IGNORE = -100  # label of a token that is not learned, as in transformers
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
# Text that the tokenizer would turn into control or image tokens.
RESERVED = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<img>", "</img>", "<IMG_CONTEXT>", "<image>")


@dataclass(frozen=True)
class Turn:
    """One message; `role` is "system", "user" or "assistant"."""

    role: str
    text: str


@dataclass(frozen=True)
class Conversation:
    """A video (or a part of it) and the turns about it; the first user turn holds `<video>`."""

    entry: VideoEntry
    turns: tuple[Turn, ...]


def load_conversations(source: str | os.PathLike[str]) -> list[Conversation]:
    """Read a JSONL file of rows; relative video paths start at its folder. Videos are not opened here.

    Raises:
        ValueError: the file is missing, empty, or holds a bad row; the message names file, line and remedy.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        raise ValueError(f"{path} is a folder; conversations come from a .jsonl file")
    entries = load_manifest(path)  # checks video, start, end and that each row is a JSON object
    conversations = []
    with path.open(encoding="utf-8") as lines:
        rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    for entry, (number, line) in zip(entries, rows, strict=True):
        conversations.append(Conversation(entry, parse_turns(json.loads(line), f"{path}:{number}")))
    return conversations


def parse_turns(row: dict[str, Any], where: str) -> tuple[Turn, ...]:
    """The turns of one row, with `<video>` in the first user turn.

    Raises:
        ValueError: they cannot be learned from; the message starts with `where`.
    """
    if "clip" in row:
        raise ValueError(f"{where}: 'clip' is not read; write its two numbers as 'start' and 'end'")
    messages = row.get("conversations")
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where}: 'conversations' must be a list of turns, got {messages!r}")
    turns = [_turn(message, f"{where}: turn {i}") for i, message in enumerate(messages, 1)]
    start = 1 if turns[0].role == "system" else 0
    for i, turn in enumerate(turns[start:]):
        wanted = ("user", "assistant")[i % 2]
        if turn.role != wanted:
            names = [str(message["from"]) for message in messages]
            raise ValueError(f"{where}: turns are {names}; 'human' and 'gpt' must alternate, 'human' first")
    if turns[-1].role != "assistant":
        raise ValueError(f"{where}: the last turn is not from 'gpt'; a conversation ends with an answer")
    counts = [turn.text.count(PLACEHOLDER) for turn in turns]
    if sum(counts) == 0:
        turns[start] = Turn("user", f"{PLACEHOLDER}\n{turns[start].text}")
    elif sum(counts) > 1 or counts[start] != 1:
        raise ValueError(f"{where}: {sum(counts)} {PLACEHOLDER} in {counts} turns; one is wanted, in the first 'human'")
    return tuple(turns)


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, dict) or message.get("from") not in ROLES:
        raise ValueError(f"{where}: 'from' must be one of {', '.join(ROLES)}, got {message!r}")
    text = message.get("value")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: 'value' must be a text that is not empty, got {text!r}")
    for token in RESERVED:
        if token in text:
            raise ValueError(f"{where}: the text holds {token!r}, which is a control token; videos are {PLACEHOLDER}")
    return Turn(ROLES[message["from"]], text.strip())


def segments(turns: tuple[Turn, ...], video: str) -> list[tuple[str, bool]]:
    """ChatML of a conversation up to its last answer, cut into `(text, learned)`: answers and their `<|im_end|>` are.

    Args:
        turns: of one conversation.
        video: what stands for the video.
    """
    cut: list[tuple[str, bool]] = []
    pending = ""
    for turn in turns:
        pending += f"<|im_start|>{turn.role}\n"
        if turn.role == "assistant":
            cut += [(pending, False), (f"{turn.text}<|im_end|>", True)]
            pending = "\n"
        else:
            pending += f"{turn.text.replace(PLACEHOLDER, video)}<|im_end|>\n"
    return cut


def encode_conversation(turns: tuple[Turn, ...], video: str, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids [L] and labels [L], -100 everywhere but on answers and the `<|im_end|>` after each.

    Segments are tokenized one by one, so that no token straddles the border of an answer, and the tokens before an
    answer are those that generation starts from.
    """
    ids: list[int] = []
    labels: list[int] = []
    for text, learned in segments(turns, video):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
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


def question_prompt(question: str, system: str | None = None) -> str:
    """The ChatML prompt of one question about one video, up to where the answer starts; holds `<video>` once."""
    turns = [Turn("system", system)] if system else []
    turns += [Turn("user", f"{PLACEHOLDER}\n{question}")]
    return "".join(f"<|im_start|>{turn.role}\n{turn.text}<|im_end|>\n" for turn in turns) + "<|im_start|>assistant\n"
