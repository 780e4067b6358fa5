"""Rows are checked where they are read; labels are compared with masks made by hand."""

import json
from collections import Counter

import pytest

from liteframe.align.conversation_files import describe_unread, load_conversations
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
        ({"clip": [1, 2], "end": 3}, "as clip and as start to end; keep one"),
        ({"video": "../a.mp4"}, "leaves"),
        ({"video": "http://a/b.mp4"}, "only paths of local files"),
        ({"start": 3, "end": 2}, "is not after start"),
        ({"video_start": 3, "video_end": 2}, "is not after start"),
        ({"video_start": 3, "start": 2}, "as start to end and as video_start to video_end; keep one"),
        ({"video": None, "conversations": GOOD[2:], "clip": [0, 1]}, "a span of seconds and no video file"),
        ({"video": None, "videos": [["0.png", "1.png"]], "start": 1}, "a span of seconds and no video file"),
        ({"video": 3}, "'video' is 3"),
        ({"conversations": [GOOD[0], GOOD[1] | {"loss": 0.5}]}, "turn 2: 'loss' is 0.5; an answer is learned"),
        ({"conversations": [GOOD[0], GOOD[1] | {"weight": "0"}]}, "turn 2: 'weight' is '0'; an answer is learned"),
        ({"conversations": [GOOD[0] | {"train": True}, GOOD[1]]}, "turn 1: 'train' is True; .*other turns never are"),
        ({"conversations": [GOOD[0], GOOD[1] | {"loss": True, "weight": 0}]}, "turn 2: .* contradict each other"),
        ({"conversations": [GOOD[0], GOOD[1] | {"loss": False}]}, "no answer is to be learned; remove the row"),
        ({"conversations": [GOOD[0], {"from": "gpt", "value": "\udcff"}]}, "turn 2: 'value' holds half of a character"),
        (
            {"conversations": [GOOD[0], {"from": "gpt", "value": [{"type": "text"}]}]},
            "is a list of parts; write one text",
        ),
        ({"system": ["Be brief."]}, "'system' is a list of parts"),
        ({"system": 3}, "'system' must be a text"),
        ({"system": "See <video>"}, "a system turn holds a placeholder|holds 2 <video>"),
        (
            {"system": "Be brief.", "system_prompt": "Be long."},
            "'system_prompt' is 'Be long.', but the row begins with",
        ),
        (
            {"system": "a", "conversations": [{"from": "system", "value": "b"}, *GOOD]},
            "'system' is 'a', but .* with 'b'",
        ),
        ({"audios": ["a.wav"]}, r"'audios' is \['a.wav'\], and sound is not heard here; remove the key, or the row"),
        ({"tools": '[{"name": "zoom"}]'}, "tools are not called"),
        ({"objects": {"ref": ["dog"], "bbox": [[0, 0, 1, 1]]}}, "boxes are not put into the text"),
        ({"rejected_response": "no"}, "every answer of a row is learned, and no preference"),
        ({"kto_tag": False}, "'kto_tag' is False, and every answer of a row is learned"),
        ({"nframes": 8}, "data.frames and data.fps say what is shown"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "prompts have no options"),
        ({"conversations": [GOOD[0], GOOD[1] | {"tool_calls": [{"name": "zoom"}]}]}, "turn 2: 'tool_calls' is"),
        (
            {"conversations": [GOOD[0], GOOD[1] | {"reasoning_content": "hm"}]},
            "turn 2: .*thoughts are not put before an answer",
        ),
        ({"conversations": [GOOD[0] | {"image": "a.png"}, GOOD[1]]}, "turn 1: .*named in the row, beside its turns"),
    ],
)
def test_bad_rows_are_named_with_file_and_line(tmp_path, change, message):
    good = {"video": "a.mp4", "conversations": GOOD}
    path = write(tmp_path / "rows.jsonl", good, {**good, **change})
    with pytest.raises(ValueError, match=rf"rows\.jsonl:2.*{message}"):
        load_conversations(path)


FOREIGN = (
    "<|video_pad|>", "<|vision_start|>", "<|image_pad|>", "<|audio_bos|>", "<|VIDEO|>", "<|image_1|>", "<|eot_id|>",
    "<|assistant|>", "<\uff5cUser\uff5c>", "<|begin_of_video|>", "<|media_pad|>", "<video_soft_token>",
    "<image_soft_token>", "<start_of_image>", "<end_of_turn>", "<image_placeholder>", "<ImageHere>", "<im_start>",
    "<vi_end>", "<vid_patch>", "<image_1>", "<image 1>", "<Image>", "<VIDEO>", "<audio>", "<bbox>", "<ref-object>",
    "<cot-process>", "<fake_token_around_image>", "<row_1_col_2>", "[IMG]", "[IMG_BREAK]", "<VIDEO_CONTEXT>",
)  # fmt: skip


@pytest.mark.parametrize("token", FOREIGN)
def test_placeholders_of_other_tools_are_not_learned_as_words(tmp_path, token):
    asked = [{**GOOD[0], "value": f"<video>\n{token} what?"}, GOOD[1]]
    told = [GOOD[0], {**GOOD[1], "value": f"red{token}"}]
    for place, row in {"turn 1": {"conversations": asked}, "turn 2": {"conversations": told},
                       "'system'": {"conversations": GOOD, "system": token}}.items():  # fmt: skip
        path = write(tmp_path / "rows.jsonl", {"video": "a.mp4", **row})
        with pytest.raises(
            ValueError,
            match=rf"rows\.jsonl:1: {place}.* holds .*(placeholder or control token of another|is a control token)",
        ):
            load_conversations(path)


def test_other_angle_brackets_are_words(tmp_path):
    words = (
        "1 < 2 > 0, <b>bold</b>, x<|y, <think>so</think>, <video_description>a</video_description>, [IMGUR], <ref>, "
        "<|object_ref_start|>a dog<|object_ref_end|><|box_start|>(221,423),(569,886)<|box_end|>"
    )
    row = {"video": "a.mp4", "conversations": [GOOD[0], {"from": "gpt", "value": words}]}
    (conversation,) = load_conversations(write(tmp_path / "rows.jsonl", row))
    assert conversation.turns[1].text == words


@pytest.mark.parametrize("key", ["loss", "loss_scale", "loss_weight", "weight", "train", "training"])
@pytest.mark.parametrize("no", [False, 0, 0.0])
def test_an_answer_that_is_not_to_be_learned_is_only_read(tmp_path, tokenizer, key, no):
    marked = [GOOD[0] | {key: None}, GOOD[1] | {key: no}, GOOD[2] | {key: no}, GOOD[3] | {key: 1}]
    rows = [{"video": "a.mp4", "conversations": turns} for turns in (GOOD, marked)]
    plain, chosen = load_conversations(write(tmp_path / "rows.jsonl", *rows))
    ids, all_labels = encode_conversation(plain.turns, ["<video>"], tokenizer)
    same_ids, labels = encode_conversation(chosen.turns, ["<video>"], tokenizer)
    assert same_ids == ids
    assert [label for label in all_labels if label != -100] == tokenizer("red<|im_end|>left<|im_end|>")["input_ids"]
    left = tokenizer("left<|im_end|>")["input_ids"]
    assert labels == [-100] * (len(ids) - len(left)) + left


@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_the_system_of_a_row_comes_first(tmp_path, key):
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    first = {"role": "system", "content": "Be brief."}
    rows = [{"messages": [first, *turns]}, {"messages": turns, key: " Be brief.\n"}]
    rows += [
        {"messages": [first, *turns], key: "Be brief."},
        {"messages": turns, key: None},
        {"messages": turns, key: ""},
    ]
    found = load_conversations(write(tmp_path / "rows.jsonl", *rows))
    assert found[0] == found[1] == found[2] != found[3] == found[4]
    assert (found[1].turns[0].role, found[1].turns[0].text) == ("system", "Be brief.")


def test_spans_in_three_forms_are_one(tmp_path):
    forms = [{"clip": [1, 2.5]}, {"start": 1, "end": 2.5}, {"video_start": 1.0, "video_end": 2.5}]
    rows = [{"video": "a.mp4", "conversations": GOOD, **form, "clip_id": 3} for form in forms]
    first, *others = load_conversations(write(tmp_path / "rows.jsonl", *rows))
    assert (first.media[0].entry.start, first.media[0].entry.end) == (1.0, 2.5)
    assert others == [first, first]


def test_keys_that_ask_for_nothing_pass_and_others_are_counted(tmp_path):
    """Tables that were written as JSON have every key in every row."""
    empty = {"audios": [], "tools": "", "objects": {"ref": [], "bbox": []}, "rejected_response": None, "system": None,
             "clip": None, "start": None, "nframes": None, "chat_template_kwargs": {}}  # fmt: skip
    turns = [GOOD[0] | {"tool_calls": None, "name": "Ann"}, GOOD[1] | {"loss": None, "name": "Bob"}]
    row = {"id": 3, "video": "a.mp4", "conversations": turns, **empty}
    rows = [
        row | {"category": "a", "score": 1},
        row | {"category": "b"},
        row | {"fps": "2", "width": [640], "frames": 0},
    ]
    unread = Counter()
    assert len(load_conversations(write(tmp_path / "rows.jsonl", *rows), unread)) == 3
    assert unread == {"category": 2, "score": 1, "fps": 1, "width": 1, "frames": 1, "name of a turn": 3}
    assert describe_unread(unread) == "category (2), fps (1), frames (1), name of a turn (3), score (1), width (1)"


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
