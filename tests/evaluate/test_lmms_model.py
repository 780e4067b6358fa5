"""What lmms-eval may ask of the model class beyond a question about a video, and what is refused."""

import json

import pytest
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model
from PIL import Image
from worlds import ROOT
from worlds import benchmarks as samples
from worlds.ctd import write_video

from liteframe.cli.main import main

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


def test_an_image_is_a_video_of_one_frame(model, tmp_path):
    image = Image.new("RGB", (64, 64), (225, 40, 40))
    one = ask(model, chat({"type": "image", "url": image}, words(TEXT)))
    assert one[0]
    many = ask(model, *[chat({"type": "image", "url": image}, {"type": "image", "url": image}, words(TEXT))] * 2)
    assert many[0] == many[1]


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
