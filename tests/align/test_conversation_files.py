"""Conversation data in the forms that users have; pixels and prompts of mixed media against transformers' own."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from worlds.ctd import write_video

from liteframe.align.batch import collate_samples
from liteframe.align.conversation_files import check_files, load_conversations
from liteframe.align.dataset import ConversationDataset
from liteframe.cli.main import main
from liteframe.data.stream import ClipStream, GroupedStream
from liteframe.data.video.errors import VideoError

ASK, TELL = {"from": "human", "value": "What colour?"}, {"from": "gpt", "value": "red"}


def said(*texts):
    """Turns that begin with the human's."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def write(path, content):
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    write_video(folder / "a.mp4", frames=24, fps=8, seed=0)
    write_video(folder / "b.mp4", frames=16, fps=8, seed=1)
    rng = np.random.default_rng(0)
    for name, size in (("wide.png", (40, 90)), ("tall.jpg", (100, 30)), ("f0.png", (48, 64)), ("f1.png", (48, 64))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    return folder


def test_internvl_meta(tmp_path):
    (tmp_path / "data").mkdir()
    rows = [{"video": f"{i}.mp4", "clip": [1, 2.5], "conversations": [ASK, TELL]} for i in range(4)]
    (tmp_path / "data/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    images = [{"image": ["x.png", "y.png"], "conversations": said("<image> and <image>?", "no")}]
    write(tmp_path / "data/images.json", images)
    meta = {
        "part": {"root": "data", "annotation": "data/rows.jsonl", "repeat_time": 0.5, "length": 4},
        "twice": {"root": "data/", "annotation": "data/images.json", "repeat_time": 2, "data_augment": False},
    }
    found = load_conversations(write(tmp_path / "meta.json", meta))
    assert [c.media[0].kind for c in found] == ["video", "video", "image", "image"]
    entry = found[1].media[0].entry
    assert (entry.video, entry.start, entry.end) == (str(tmp_path / "data/1.mp4"), 1.0, 2.5)
    assert found[0].turns[0].text == "<video>\nWhat colour?"
    assert [m.files for m in found[2].media] == [(str(tmp_path / "data/x.png"),), (str(tmp_path / "data/y.png"),)]
    assert found[2] == found[3]


def test_llava_json_and_mixture(tmp_path):
    rows = [{"id": i, "video": f"{i}.mp4", "conversations": said(f"<image>\nq{i}", "a")} for i in range(10)]
    rows[0] = {"id": 0, "conversations": said("no picture", "a")}
    write(tmp_path / "rows.json", rows)
    (tmp_path / "videos").mkdir()
    mixture = "datasets:\n" + "".join(
        f"  - json_path: rows.json\n    root: videos\n    sampling_strategy: {strategy}\n"
        for strategy in ("all", "'first:25%'", "'end:2'", "'random:4'")
    )
    (tmp_path / "mix.yaml").write_text(mixture)
    found = load_conversations(tmp_path / "mix.yaml")
    assert len(found) == 10 + 3 + 2 + 4
    names = [c.media[0].files[0] if c.media else None for c in found]
    assert names[10:15] == [None, *(str(tmp_path / f"videos/{i}.mp4") for i in (1, 2, 8, 9))]
    assert len(set(names[15:])) == 4
    assert load_conversations(tmp_path / "mix.yaml") == found
    assert found[1].turns[0].text == "<video>\nq1"  # LLaVA's <image> stands for the video


def test_messages(tmp_path):
    row = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "<video>then <image> and <video>"},
            {"role": "assistant", "content": "yes"},
        ],
        "videos": ["a.mp4", ["f0.png", "f1.png"]],
        "images": ["wide.png"],
    }
    (conversation,) = load_conversations(write(tmp_path / "rows.json", [row]))
    assert [m.kind for m in conversation.media] == ["video", "image", "frames"]
    assert conversation.media[2].files == (str(tmp_path / "f0.png"), str(tmp_path / "f1.png"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[{]", r"a\.json:1: not JSON"),
        ("a.json", '{"x": 1}', "holds a dict"),
        ("a.json", "[]", "holds no conversation"),
        ("a.json", "[3]", r"row 1: a row is a JSON object"),
        ("a.jsonl", '{"conversations": 3}\n', r"a\.jsonl:1: 'conversations' must be a list"),
        ("a.json", '{"x": {"annotation": "none.jsonl"}}', r"'x': annotation is 'none.jsonl'; there is no such file"),
        ("a.json", '{"x": {"root": "."}, "y": {"annotation": "a.json"}}', r"a\.json: 'x' is .*with 'annotation'"),
        ("a.yaml", "datasets: 3", "a mixture is"),
        ("a.yaml", "datasets: [{json_path: none.json}]", "dataset 1: json_path is 'none.json'"),
        ("a.yaml", "datasets: [", "not YAML"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_conversations(tmp_path / name)


@pytest.mark.parametrize("strategy", ["some", "first", "first:x", "end:-1", "random:1.5", "all:3"])
def test_bad_sampling_strategies_are_refused(tmp_path, strategy):
    write(tmp_path / "rows.json", [{"conversations": [ASK, TELL]}])
    (tmp_path / "mix.yaml").write_text(f"datasets: [{{json_path: rows.json, sampling_strategy: '{strategy}'}}]")
    with pytest.raises(ValueError, match="sampling_strategy is"):
        load_conversations(tmp_path / "mix.yaml")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"repeat_time": 0.2}, "repeat_time 0.2 takes none of 4 rows"),
        ({"repeat_time": 2.5}, "repeat_time is 2.5; it is a part of 1, or how many times"),
        ({"repeat_time": 0}, "repeat_time is 0; it must be a positive number"),
        ({"repeat_time": float("nan")}, "repeat_time is nan; it must be a positive number"),
        ({"repeat_time": 10**400}, "repeat_time is 1000"),
        ({"data_augment": True}, "data_augment is True, and no picture is changed; set it to false"),
        ({"annotation": "empty.jsonl"}, r"empty\.jsonl: holds no conversation"),
    ],
)
def test_a_part_of_which_nothing_or_something_else_would_be_taken(tmp_path, part, message):
    good = {"annotation": "rows.json", "max_dynamic_patch": 12}
    write(tmp_path / "rows.json", [{"conversations": [ASK, TELL]}] * 4)
    (tmp_path / "empty.jsonl").write_text("\n")
    unread = Counter()
    assert len(load_conversations(write(tmp_path / "meta.json", {"good": good}), unread)) == 4
    assert unread == {"max_dynamic_patch of a meta file": 1}
    with pytest.raises(ValueError, match=message):
        load_conversations(write(tmp_path / "meta.json", {"good": good, "bad": {**good, **part}}))
    for strategy in ("first:0", "random:0%"):
        (tmp_path / "mix.yaml").write_text(f"datasets: [{{json_path: rows.json, sampling_strategy: '{strategy}'}}]")
        with pytest.raises(ValueError, match=f"dataset 1: sampling_strategy {strategy} takes none of 4 rows"):
            load_conversations(tmp_path / "mix.yaml")


def test_what_another_tool_says_of_a_file_is_not_believed(files, processor, tmp_path):
    """Qwen's fps and frames are how many to draw; InternVL's width is a list."""
    plain = {"video": "a.mp4", "conversations": said("What colour?", "red")}
    told = {**plain, "fps": 2.0, "frames": 4, "width": [28], "height": 28, "duration": "0:03", "reader": "opencv"}
    data = dataset(files, processor, plain, told, tmp_path=tmp_path)
    first, second = (data[(0, i)] for i in range(2))
    assert first.media[0].key == second.media[0].key
    assert len(first.media[0].pixels) == 8
    assert torch.equal(first.media[0].pixels, second.media[0].pixels)
    assert second.input_ids == first.input_ids


def test_all_bad_rows_are_told_at_once(tmp_path):
    good, bad = {"conversations": [ASK, TELL]}, {"conversations": [ASK]}
    write(tmp_path / "a.json", [good, bad, good, 3])
    lines = [json.dumps(good), "{", json.dumps(bad)]
    (tmp_path / "b.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"conversations": "\xe9"}\n')
    (tmp_path / "mix.yaml").write_text("datasets: [{json_path: a.json}, {json_path: b.jsonl}]")
    with pytest.raises(ValueError, match="5 rows cannot be learned from") as error:
        load_conversations(tmp_path / "mix.yaml")
    told = str(error.value).splitlines()[1:]
    places = ["a.json: row 2", "a.json: row 4", "b.jsonl:2", "b.jsonl:3", "b.jsonl:4: not UTF-8"]
    assert [place in line for place, line in zip(places, told, strict=True)] == [True] * 5
    write(tmp_path / "many.json", [bad] * 50)
    with pytest.raises(ValueError, match=r"50 rows (.*\n){21}  and 30 more$"):
        load_conversations(tmp_path / "many.json")


def test_files_from_other_systems(tmp_path):
    row = json.dumps({"id": 1, "conversations": said("Où?", "là"), "videos": [], "image": []}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_bytes(f"\ufeff{row}\r\n\r\n{row}\r\n".encode())
    (tmp_path / "a.json").write_bytes(f"\ufeff[{row},\r\n{row}]\r\n".encode())
    found = load_conversations(tmp_path / "a.jsonl")
    assert found == load_conversations(tmp_path / "a.json")
    assert [(c.media, c.turns[1].text) for c in found] == [((), "là")] * 2


def test_missing_files_are_told_before_the_run(files, tmp_path):
    rows = [{"video": str(files / name), "conversations": [ASK, TELL]} for name in ("a.mp4", "b.mp4", "none.mp4")]
    found = load_conversations(write(tmp_path / "rows.json", rows))
    check_files(found, 0.34)
    with pytest.raises(ValueError, match=r"1 of the 3 videos(.|\n)*none\.mp4"):
        check_files(found, 0.33)


def dataset(files, processor, *rows, tmp_path, frames=8):
    path = files / f"{tmp_path.name}.json"
    return ConversationDataset(load_conversations(write(path, list(rows))), processor, budgets=[frames], fps=(8.0, 8.0))


def test_mixed_media_are_what_the_processor_makes_of_them(files, processor, tmp_path):
    rows = [
        {"video": "a.mp4", "conversations": said("What colour?", "red")},
        {"conversations": said("What shape?", "circle")},
        {"image": ["wide.png", "tall.jpg"], "conversations": said("<image> or <image>?", "left")},
        {"videos": [["f0.png", "f1.png"]], "images": ["wide.png"], "messages": [
            {"role": "user", "content": "<image> in <video>?"}, {"role": "assistant", "content": "red"}]},
    ]  # fmt: skip
    data = dataset(files, processor, *rows, tmp_path=tmp_path)
    samples = [data[(0, i)] for i in range(4)]
    assert [[len(m.pixels) for m in sample.media] for sample in samples] == [[8], [], [1, 1], [1, 2]]
    batch = collate_samples(samples, processor.tokenizer.pad_token_id, processor.image_token_id)
    assert (batch.media_counts, batch.video_frames) == ([1, 0, 2, 2], [8, 1, 1, 1, 2])
    assert batch.pixels.dtype == torch.uint8
    # The processor itself, given the decoded pictures, writes the same tokens and pixels.
    images = [np.asarray(Image.open(files / name).convert("RGB")) for name in ("wide.png", "tall.jpg", "wide.png")]
    frames = np.stack([np.asarray(Image.open(files / name)) for name in ("f0.png", "f1.png")])
    inputs = processor(
        text=["<|im_start|>user\n<IMG_CONTEXT> or <IMG_CONTEXT>?<|im_end|>\n<|im_start|>assistant\nleft<|im_end|>",
              "<|im_start|>user\n<IMG_CONTEXT> in <video>?<|im_end|>\n<|im_start|>assistant\nred<|im_end|>"],
        images=images, videos=[frames], padding_side="right",
    )  # fmt: skip
    assert batch.input_ids[2:, : inputs["input_ids"].shape[1]].tolist() == inputs["input_ids"].tolist()
    pixels = processor.normalized(batch.pixels[8:])
    assert [torch.equal(a, b) for a, b in zip(pixels, inputs["pixel_values_videos"], strict=True)] == [True] * 5


def test_bytes_on_the_way_give_the_very_pixels(processor, frames):
    """Resize in the worker and normalize on the device, against the video processor in one go."""
    video = frames(5, 50, 90)
    whole = processor.video_processor(
        videos=[torch.as_tensor(video).permute(0, 3, 1, 2).contiguous()], return_tensors="pt", do_sample_frames=False
    )["pixel_values_videos"][0]
    assert processor.resized(video).dtype == torch.uint8
    assert torch.equal(processor.normalized(processor.resized(video)), whole)


@pytest.mark.parametrize("name", ["none.png", "rows.png", "float.tif"])
def test_bad_images_are_failures_not_other_images(files, processor, tmp_path, name):
    (files / "rows.png").write_text("not an image")
    Image.fromarray(np.ones((4, 5), np.float32)).save(files / "float.tif")
    data = dataset(files, processor, {"image": name, "conversations": said("<image>?", "no")}, tmp_path=tmp_path)
    error = data[(0, 0)]
    assert isinstance(error, VideoError)
    assert name in str(error)


def test_grouped_batches_hold_every_sample_once_and_waste_less():
    lengths = np.random.default_rng(0).integers(10, 1000, 512)
    settings = {"seed": 3, "rank": 0, "world_size": 2}
    by_length = {"step": 128, "length": lambda key: lengths[key[1]]}

    def batches(stream):
        return [stream.batch(number) for number in range(64)]

    def padding(found):
        return sum(
            max(lengths[i] for _, i in batch) * len(batch) - sum(lengths[i] for _, i in batch) for batch in found
        )

    seen, wasted = [], {}
    for rank in (0, 1):
        grouped = batches(GroupedStream(512, 4, 64, **by_length, **{**settings, "rank": rank}))
        plain = batches(ClipStream(512, 4, 64, **{**settings, "rank": rank}))
        seen += [index for batch in grouped for _, index in batch]
        wasted = {"grouped": padding(grouped), "plain": padding(plain)}
    assert sorted(seen) == list(range(512))
    assert wasted["grouped"] < 0.2 * wasted["plain"]
    first = GroupedStream(512, 4, 64, **by_length, **settings)
    assert batches(first) == batches(GroupedStream(512, 4, 64, **by_length, **settings))


@pytest.mark.parametrize(("micro", "ranks"), [(6, 1), (1, 2), (3, 2)])
def test_a_step_of_grouped_samples_is_the_same_however_it_is_divided(micro, ranks):
    """Eleven samples in steps of six: a step that two epochs share is the plain stream's, sorted as one."""
    lengths = np.random.default_rng(1).integers(10, 1000, 11)
    by_length = {"step": 6, "length": lambda key: lengths[key[1]]}
    parts = [GroupedStream(11, micro, 1, seed=3, rank=rank, world_size=ranks, **by_length) for rank in range(ranks)]
    turns = 6 // (micro * ranks)
    plain = ClipStream(11, 6, 1, seed=3)
    for step in range(6):
        keys = [key for turn in range(step * turns, (step + 1) * turns) for part in parts for key in part.batch(turn)]
        assert sorted(keys) == sorted(plain.batch(step))
        assert keys == sorted(keys, key=lambda key: lengths[key[1]])


def test_preview_shows_what_is_learned(files, vlm, encoder, processor, tmp_path, capsys):
    from liteframe.toyworld.model import build_processor

    vlm.save_pretrained(tmp_path / "vlm")
    build_processor(processor.tokenizer).save_pretrained(tmp_path / "vlm")
    encoder.save_pretrained(tmp_path / "encoder")
    rows = [{"video": "a.mp4", "conversations": said("What colour is the circle?", "red", "Which shape?", "circle")}]
    path = write(files / "preview.json", rows)
    argv = ["preview", str(path), "--vlm", str(tmp_path / "vlm"), "--encoder", str(tmp_path / "encoder")]
    assert main([*argv, "--frames", "8", "--fps", "8"]) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert "[LEARN]red<|im_end|>[/LEARN]" in shown
    assert "[LEARN]circle<|im_end|>[/LEARN]" in shown
    assert shown.count("[LEARN]") == 2
    assert "4learned" in shown
    (files / "[red]").mkdir()
    (files / "a.mp4").rename(files / "[red]" / "a.mp4")
    write(path, [rows[0] | {"video": "[red]/a.mp4"}])
    assert main([*argv, "--frames", "8"]) == 0
    printed = capsys.readouterr().out
    (files / "[red]" / "a.mp4").rename(files / "a.mp4")
    assert f"  {files}/[red]/a.mp4: frames [4, 12, 20]\n" in printed
    assert "Frame1-3:<img><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT></img>\n" in printed  # 80 columns or not
    assert main([*argv, "--row", "5"]) == 2
    assert "0 to 0" in capsys.readouterr().err
