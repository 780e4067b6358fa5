"""Rows are checked where they are read; labels are compared with masks made by hand."""

import json

import pytest

from liteframe.align.conversation_files import load_conversations
from liteframe.models.vlm.chat import encode_conversation, question_prompt, template_warning
from liteframe.models.vlm.internvl import LiteFrameInternVLProcessor

GOOD = [
    {"from": "human", "value": "<video>\nWhat colour is the circle?"},
    {"from": "gpt", "value": " red \n"},
    {"from": "human", "value": "Which way does the circle move?"},
    {"from": "gpt", "value": "left"},
]


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_become_conversations(tmp_path):
    rows = [
        {"id": 7, "video": "a.mp4", "start": 1, "end": 2.5, "conversations": GOOD},
        {"video": "/b.mp4", "conversations": [{"from": "system", "value": "Be brief."}, *GOOD[2:]]},
    ]
    path = write(tmp_path / "rows.jsonl", rows[0])
    path.write_text(path.read_text() + "\n" + json.dumps(rows[1]) + "\n")  # an empty line between
    first, second = load_conversations(path)
    entry = first.media[0].entry
    assert (entry.video, entry.start, entry.end) == (str(tmp_path / "a.mp4"), 1.0, 2.5)
    assert [turn.role for turn in first.turns] == ["user", "assistant", "user", "assistant"]
    assert first.turns[1].text == "red"
    assert second.media[0].files == ("/b.mp4",)
    assert [turn.role for turn in second.turns] == ["system", "user", "assistant"]
    assert second.turns[1].text == "<video>\nWhich way does the circle move?"  # the placeholder is put before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conversations": []}, "'conversations' must be a list"),
        ({"conversations": GOOD[:1]}, "last turn is not the assistant's"),
        ({"conversations": GOOD[1:]}, "must alternate"),
        ({"conversations": [GOOD[0], GOOD[1], GOOD[1]]}, "must alternate"),
        ({"conversations": [{"from": "me", "value": "x"}]}, "turn 1: 'from' must be one of human, gpt, system"),
        ({"conversations": [GOOD[0], {"from": "gpt", "value": " "}]}, "turn 2: 'value' must be a text"),
        (
            {"conversations": [GOOD[0], GOOD[1], GOOD[0], GOOD[1]]},
            "holds 2 <video> and 0 <image>",
        ),
        ({"conversations": [GOOD[2], {"from": "gpt", "value": "see <video>"}]}, "assistant turn holds a placeholder"),
        ({"image": "b.png", "conversations": GOOD}, "1 <video> and 0 <image>, but the row names 1 videos and 1 images"),
        ({"messages": []}, "either 'conversations' or 'messages'"),
        ({"conversations": [GOOD[0], {"from": "gpt", "value": "a<|im_end|>"}]}, r"'<\|im_end\|>'"),
        ({"clip": [1, 2, 3]}, r"must be \[start, end\]"),
        ({"clip": [1, 2], "end": 3}, "without 'start' and 'end'"),
        ({"video": "../a.mp4"}, "leaves"),
        ({"video": "http://a/b.mp4"}, "only paths of local files"),
        ({"start": 3, "end": 2}, "is not after start"),
        ({"video": 3}, "'video' is 3"),
    ],
)
def test_bad_rows_are_named_with_file_and_line(tmp_path, change, message):
    good = {"video": "a.mp4", "conversations": GOOD}
    path = write(tmp_path / "rows.jsonl", good, {**good, **change})
    with pytest.raises(ValueError, match=rf"rows\.jsonl:2.*{message}"):
        load_conversations(path)


def test_a_folder_or_a_missing_file_is_no_list_of_conversations(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        load_conversations(tmp_path)
    with pytest.raises(ValueError, match=r"none\.jsonl"):
        load_conversations(tmp_path / "none.jsonl")


def test_labels_are_the_answers_and_their_ends(tmp_path, tokenizer, processor):
    row = {"video": "a.mp4", "conversations": [{"from": "system", "value": "What colour?"}, *GOOD]}
    (conversation,) = load_conversations(write(tmp_path / "rows.jsonl", row))
    video = processor.video_text(processor.slots(5, 64, 64))
    ids, labels = encode_conversation(conversation.turns, [video], tokenizer)
    text = (
        "<|im_start|>system\nWhat colour?<|im_end|>\n"
        f"<|im_start|>user\n{video}\nWhat colour is the circle?<|im_end|>\n"
        "<|im_start|>assistant\nred<|im_end|>\n"
        "<|im_start|>user\nWhich way does the circle move?<|im_end|>\n"
        "<|im_start|>assistant\nleft<|im_end|>"
    )
    assert ids == tokenizer(text)["input_ids"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    red, left = (tokenizer.convert_tokens_to_ids(word) for word in ("red", "left"))
    expected = [-100] * len(ids)
    for answer in (red, left):
        place = ids.index(answer)
        expected[place : place + 2] = [answer, end]
    assert labels == expected
    assert sum(label != -100 for label in labels) == 4


def test_the_prompt_of_training_is_the_prompt_of_asking(tmp_path, tokenizer, processor):
    row = {"video": "a.mp4", "conversations": GOOD[:2]}
    (conversation,) = load_conversations(write(tmp_path / "rows.jsonl", row))
    ids, labels = encode_conversation(conversation.turns, ["<video>"], tokenizer)
    prompt = question_prompt("What colour is the circle?")
    asked = tokenizer(prompt)["input_ids"]
    first = next(i for i, label in enumerate(labels) if label != -100)
    assert ids[:first] == asked
    chat = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What colour is the circle?"}]}]
    assert processor.apply_chat_template(chat, add_generation_prompt=True) == prompt
    assert template_warning(processor) is None
    other = LiteFrameInternVLProcessor(tokenizer, processor.video_processor, chat_template="{{ messages[0]['role'] }}")
    assert "'user'" in template_warning(other)
