"""What lmms-eval may ask of the model class beyond a question about a video, and what is refused."""

import json

import numpy as np
import pytest
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from worlds import ROOT
from worlds import benchmarks as samples
from worlds.ctd import write_video
from worlds.students import make_student, student_config

from liteframe.cli.main import main
from liteframe.evaluate import lmms_model
from liteframe.models.vlm.chat import user_prompt

TOY = str(ROOT / "liteframe/toyworld/checkpoint")
GREEDY = {"max_new_tokens": 8, "temperature": 0}
TEXT = "What colour is the circle?"


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("lmms") / "v.mp4", frames=24, fps=8, seed=2)


@pytest.fixture(scope="module")
def model():
    return get_model("liteframe").create_from_arg_string(f"pretrained={TOY},frames=4,device=cpu", {"batch_size": 1})


@pytest.fixture(scope="module")
def reply(video, tmp_path_factory):
    """The reply of `liteframe eval`."""
    out = tmp_path_factory.mktemp("ours")
    row = {"video": str(video), "question": TEXT, "answer": "red"}
    file = samples.write_rows(out / "q.jsonl", [row])
    command = ["eval", str(file), "--vlm", TOY, "--frames", "4", "--max-new-tokens", "8", "-o", str(out / "run")]
    assert main(command) == 0
    return json.loads((out / "run/answers.jsonl").read_text())["reply"]


def chat(*content, system=None):
    turns = [{"role": "user", "content": list(content)}]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def words(text):
    return {"type": "text", "text": text}


def request(model, messages, settings=GREEDY, kind="generate_until"):
    model.task_dict = {"task": {"test": [{}]}}
    to_messages = messages if callable(messages) else lambda doc: messages
    metadata = {"task": "task", "doc_id": 0, "repeats": 1}
    return Instance(kind, ("", to_messages, settings, 0, "task", "test"), 0, metadata)


def ask(model, *messages, settings=GREEDY):
    return model.generate_until([request(model, one, settings) for one in messages])


def test_replies_in_the_order_of_the_requests(model, video, reply, tmp_path):
    other = write_video(tmp_path / "a.mp4", frames=24, fps=8, seed=5)
    both = [chat({"type": "video", "url": str(path)}, words(TEXT)) for path in (video, other)]
    forth, back = ask(model, *both), ask(model, *reversed(both))
    assert forth == back[::-1]
    assert forth[0] == reply


def test_until_and_system_message(model, video, reply):
    shown = {"type": "video", "url": str(video)}
    assert ask(model, chat(shown, words(TEXT)), settings={**GREEDY, "until": [reply[1:]]}) == [reply[0]]
    assert ask(model, chat(shown, words(TEXT), system=[words("circle red")])) == ask(
        model, chat(shown, words(TEXT), system="circle red")
    )


def picture(color):
    return {"type": "image", "url": Image.new("RGB", (64, 64), color)}


def test_images_stand_where_the_task_puts_them_as_transformers_shows_them(model):
    """The reply of transformers' own processor and model, for one image and for two around words."""
    own, processor = AutoModelForImageTextToText.from_pretrained(TOY).float().eval(), AutoProcessor.from_pretrained(TOY)
    red, blue = picture("red"), picture((40, 60, 220))
    for content in ([red, words(TEXT)], [red, words("or"), blue, words(TEXT)]):
        shown = [part["text"] if part["type"] == "text" else processor.image_token for part in content]
        prompt = user_prompt("\n".join(shown))
        images = [part["url"] for part in content if part["type"] == "image"]
        inputs = processor(text=[prompt], images=images, return_tensors="pt")
        ids = own.generate(**inputs, do_sample=False, max_new_tokens=8, eos_token_id=processor.tokenizer.eos_token_id)
        expected = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        assert ask(model, chat(*content)) == [expected]


def test_an_encoder_of_clips_sees_each_image_alone(tmp_path, monkeypatch):
    """Four images are four grids of what the encoder says of each alone, where four frames of a video are one."""
    make_student(student_config(), std=0.5).save_pretrained(tmp_path / "encoder")
    arguments = f"pretrained={TOY},encoder={tmp_path / 'encoder'},device=cpu"
    model = get_model("liteframe").create_from_arg_string(arguments, {"batch_size": 1})
    given = {}
    monkeypatch.setattr(lmms_model, "generate_text", lambda vlm, tokenizer, request: given.update(request) or "red")
    images = [picture(color) for color in ("red", "blue", "red", "lime")]
    assert ask(model, chat(*images, words(TEXT))) == ["red"]
    assert given["video_frames"].tolist() == [1, 1, 1, 1]
    pixels = torch.stack([torch.from_numpy(np.array(part["url"])) for part in images]).permute(0, 3, 1, 2) / 255
    encoder = model.model.config.vision_config.encoder_config
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoder.image_mean, encoder.image_std))
    torch.testing.assert_close(given["pixel_values_videos"], (pixels - mean) / std)
    grid = model.processor.tokens_per_slot(64, 64)
    assert (given["input_ids"] == model.processor.image_token_id).sum() == 4 * grid
    # a later round brings words alone, and the images stay

    def to_messages(doc, round_idx=None, previous_output=None, **_):
        if round_idx is None:
            return chat(*images, words(TEXT))
        return chat(words("And now?")), round_idx == 2, previous_output, None

    made = request(model, to_messages, kind="generate_until_multi_round")
    assert model.generate_until_multi_round([made]) == [["red", "red"]]
    assert (given["input_ids"] == model.processor.image_token_id).sum() == 4 * grid


def test_an_image_that_cannot_be_shown_is_a_wrong_answer_and_stops_nothing(model, reply, video):
    floats = {"type": "image", "url": Image.new("F", (8, 8))}
    shown = {"type": "video", "url": str(video)}
    assert ask(model, chat(floats, words(TEXT)), chat(shown, words(TEXT))) == ["", reply]
    assert "of which nothing says which is white" in model.failures["image 1"]


def test_rounds_go_on_until_the_task_ends_them(model, video, reply):
    seen = []

    def to_messages(doc, round_idx=None, previous_output=None, previous_round_info=None):
        if round_idx is None:
            return chat({"type": "video", "url": str(video)}, words(TEXT))
        seen.append((round_idx, list(previous_output), previous_round_info))
        return chat(words(TEXT)), round_idx == 2, previous_output, round_idx

    made = request(model, to_messages, kind="generate_until_multi_round")
    assert model.generate_until_multi_round([made]) == [[reply, reply]]
    assert seen == [(1, [reply], None), (2, [reply, reply], 1)]


@pytest.mark.parametrize(
    ("messages", "settings", "message"),
    [
        (chat(words(TEXT)), GREEDY, "0 videos and 0 images"),
        (chat({"type": "audio", "url": "a.wav"}, words(TEXT)), GREEDY, "the task shows audio"),
        (chat({"type": "video", "url": 3}, words(TEXT)), GREEDY, "gives its video as int"),
        (chat({"type": "image", "url": "a.jpg"}, words(TEXT)), GREEDY, "gives images as paths"),
        ([*chat(words("a")), {"role": "assistant", "content": [words("b")]}], GREEDY, "turns of .*'assistant'"),
        (chat({"type": "video", "url": "v.mp4"}, words("<image>")), GREEDY, "control token"),
        (chat({"type": "video", "url": "v.mp4"}, words(TEXT)), {"temperature": 0.7}, "answers greedily"),
        (chat({"type": "video", "url": "v.mp4"}, words(TEXT)), {"num_beams": 3}, "answers greedily"),
        (
            chat({"type": "video", "url": "v.mp4"}, words(TEXT)),
            {"repetition_penalty": 1.2},
            "leave out .*repetition_penalty",
        ),
    ],
)
def test_refusals(model, messages, settings, message):
    with pytest.raises(ValueError, match=message):
        ask(model, messages, settings=settings)


def test_wrong_arguments(model):
    create = get_model("liteframe").create_from_arg_string
    with pytest.raises(ValueError, match=r"unknown \['frame'\]"):
        create(f"pretrained={TOY},frame=4")
    with pytest.raises(ValueError, match="--batch_size 8"):
        create(f"pretrained={TOY}", {"batch_size": 8})
    with pytest.raises(ValueError, match="use the task with output_type generate_until"):
        model.loglikelihood([])
