"""Preference pairs, one a row, in the forms that users have, as a Conversation with a rejected answer.

Ours, which `liteframe prefer pairs` writes: `{video, question, chosen, rejected, ...}`. ms-swift: a row of
conversation_rows whose last answer is the chosen one, with `rejected_response`. LLaMA-Factory: one that ends with the
question, with `chosen` and `rejected` as turns. What a video, a span and a turn may be is as in conversation_rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from liteframe.align.conversation_rows import Conversation, Locate, checked_text, parse_conversation, unread_keys

FORMS = "'question', 'chosen' and 'rejected', or turns with 'rejected_response', or turns with 'chosen' and 'rejected'"
OWN = {"question", "chosen", "rejected", "id", "frames", "fps", "kind", "span", "model", "seed"}  # keys of our rows


def parse_pair(row: dict[str, Any], where: str, locate: Locate) -> tuple[Conversation, set[str]]:
    """A row as a Conversation, of which only the last answer is learned, and the keys of it that are passed over.

    Args:
        row: as above.
        where: file and line, for messages.
        locate: see parse_conversation.

    Raises:
        ValueError: the row cannot be learned from; the message starts with `where`.
    """
    row, rejected = _split(row, where)
    read = parse_conversation(row, where, locate)
    *before, last = read.turns
    if not last.learned:
        raise ValueError(f"{where}: the last answer is marked as not learned, and it is all that a pair is about")
    if _plain(rejected) == _plain(last.text):
        raise ValueError(f"{where}: the chosen and the rejected answer are the same, {rejected!r}; remove the row")
    turns = (*(replace(turn, learned=turn.role != "assistant") for turn in before), last)
    return replace(read, turns=turns, rejected=rejected), unread_keys(row)


def _split(row: dict[str, Any], where: str) -> tuple[dict[str, Any], str]:
    """A row of conversation_rows that ends with the chosen answer, and the rejected one."""
    rest = dict(row)
    key = next((key for key in ("conversations", "messages") if row.get(key)), None)
    if key is None and row.get("question") is not None:
        rest = {name: value for name, value in row.items() if name not in OWN}
        said = ("human", row["question"]), ("gpt", row.get("chosen"))
        rest["conversations"] = [{"from": speaker, "value": text} for speaker, text in said]
        rejected = row.get("rejected")
    elif key is not None and isinstance(row[key], list) and row.get("rejected_response") is not None:
        rejected = rest.pop("rejected_response")
    elif key is not None and isinstance(row[key], list) and isinstance(row.get("rejected"), dict):
        rest[key] = [*row[key], rest.pop("chosen", None)]
        rejected = rest.pop("rejected").get("value" if key == "conversations" else "content")
    else:
        raise ValueError(f"{where}: no preference pair; it has {FORMS}, this row has {sorted(row)}")
    return rest, checked_text(rejected, f"{where}: the rejected answer")


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
