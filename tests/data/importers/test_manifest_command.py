"""What holds for every data set."""

import importlib
import json
import os
import shutil
from pathlib import Path

import pytest
from worlds.published import (
    PUBLISHED,
    clevrer,
    llava_row,
    llava_video,
    sharegpt4video,
    sharegpt_row,
    touch,
    write_lines,
    write_list,
)

from liteframe.align.conversation_files import load_conversations
from liteframe.data.importers import ADAPTERS, Problem
from liteframe.data.importers.base import locate
from liteframe.data.manifest import load_manifest

LICENSES = {
    "sharegpt4video": ("CC-BY-NC-4.0", "no commercial use"),
    "llava-video-178k": ("Apache-2.0", "academic research and education", "OpenAI's terms"),
    "finevideo": ("CC-BY", "removal requests", "title and channel"),
    "clevrer": ("CC0",),
    "ntu-rgbd": ("research-only agreement", "no redistribution"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_layout_gives_files_that_the_readers_accept(adapt, tmp_path, name):
    folder = PUBLISHED[name](tmp_path / "set")
    done = adapt(name, folder, text=ADAPTERS[name].has_text)
    assert done.code == 0, done.err
    assert done.bad == []
    entries = load_manifest(done.path)
    assert len({entry.video for entry in entries}) == len(entries) == len(done.videos)
    assert all(Path(entry.video).is_file() for entry in entries)
    if ADAPTERS[name].has_text:
        chats = load_conversations(done.chats_path)
        assert {chat.media[0].files[0] for chat in chats} <= {entry.video for entry in entries}
        assert len(chats) == len(done.chats)
    for words in LICENSES[name]:
        assert words in done.out
    assert done.out.index("license") < done.out.index("wrote")


def test_the_registry_is_complete():
    assert set(ADAPTERS) == set(PUBLISHED) == set(LICENSES)
    assert all(adapter.license.terms and adapter.license.source for adapter in ADAPTERS.values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_another_layout_is_refused_with_what_was_expected(adapt, tmp_path, name):
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder, found in ((empty, "found nothing"), (touch(tmp_path / "other" / "x.txt").parent, "found x.txt")):
        done = adapt(name, folder, text=False)
        assert done.code == 2
        assert f"{folder}: expected" in done.err
        assert found in done.err
        assert "nzip" in done.err or "ownload" in done.err
        assert done.videos is None
        assert done.bad is None
    assert "no such folder" in adapt(name, tmp_path / "gone", text=False).err


@pytest.mark.parametrize("name", ["sharegpt4video", "llava-video-178k"])
def test_records_cannot_name_files_outside_the_folder(adapt, tmp_path, name):
    folder = PUBLISHED[name](tmp_path / "set")
    secret = touch(tmp_path / "secret.mp4")
    os.symlink(secret, folder / "link.mp4")
    os.symlink(tmp_path, folder / "up")
    hostile = ["../secret.mp4", "panda/../../secret.mp4", str(secret), "link.mp4", "up/secret.mp4"]
    odd = ["", "a\0b.mp4", 7, None]
    if name == "sharegpt4video":
        rows = [sharegpt_row("panda/a.mp4")] + [sharegpt_row("x.mp4", video_path=path) for path in hostile + odd]
        write_lines(folder / "sharegpt4video_40k.jsonl", rows)
        good = folder / "panda" / "a.mp4"
    else:
        file = folder / "0_30_s_academic_v0_1" / "0_30_s_academic_oe_v0_1_qa_processed.json"
        rows = [llava_row("x.mp4", ("Why?", "So.")) | {"video": path} for path in hostile + odd]
        write_list(file, rows)
        good = folder / "0_30_s_academic_v0_1" / "academic_source" / "Charades" / "a.mp4"
    done = adapt(name, folder)
    assert done.code == 0
    assert [row["video"] for row in done.videos] == [str(good)]
    assert {chat["video"] for chat in done.chats} == {str(good)}
    assert sorted(row["video"] for row in done.bad if row["kind"] == "outside") == sorted(hostile)
    assert len([row for row in done.bad if row["kind"] == "record"]) == len(odd)
    assert "secret" not in done.path.read_text()


def test_the_folder_itself_may_be_a_link(tmp_path):
    video = touch(tmp_path / "disk" / "panda" / "a.mp4")
    os.symlink(tmp_path / "disk", tmp_path / "set")
    assert locate(tmp_path / "set", ("",), "panda/a.mp4", "", "") == str(tmp_path / "set" / "panda" / "a.mp4")
    os.symlink(video, tmp_path / "set" / "again.mp4")  # a link that stays inside
    assert not isinstance(locate(tmp_path / "set", ("",), "again.mp4", "", ""), Problem)


def test_missing_videos_are_counted_and_listed_with_what_to_unpack(adapt, tmp_path):
    folder = sharegpt4video(tmp_path / "set")
    rows = [sharegpt_row("panda/a.mp4"), sharegpt_row("panda/gone.mp4"), sharegpt_row("panda/gone.mp4")]
    write_lines(folder / "sharegpt4video_40k.jsonl", rows)
    done = adapt("sharegpt4video", folder)
    assert done.code == 0
    assert len(done.videos) == len(done.chats) == 1
    (bad,) = done.bad
    assert (bad["video"], bad["kind"], bad["records"]) == ("panda/gone.mp4", "missing", 2)
    assert bad["remedy"] == "unzip zip_folder/panda/panda_videos_1.zip -d panda"
    assert bad["where"].endswith("sharegpt4video_40k.jsonl:2")
    assert "1 videos, 1 conversations; 1 missing" in done.out
    (folder / "panda" / "a.mp4").unlink()
    old = done.path.read_bytes()
    done = adapt("sharegpt4video", folder)
    assert done.code == 1
    assert "no video found" in done.err
    assert done.path.read_bytes() == old


def test_broken_annotations_are_named_by_file_and_line(adapt, tmp_path):
    folder = sharegpt4video(tmp_path / "a")
    file = write_lines(folder / "sharegpt4video_40k.jsonl", [sharegpt_row("panda/a.mp4"), '{"video_path": "pan'])
    done = adapt("sharegpt4video", folder)
    assert done.code == 2
    assert f"{file}:2: not JSON" in done.err
    assert "fetch the file again" in done.err
    assert done.videos is None
    assert done.chats is None

    folder = llava_video(tmp_path / "b")
    file = folder / "0_30_s_academic_v0_1" / "0_30_s_academic_oe_v0_1_qa_processed.json"
    cut = file.read_text().splitlines()[:6]
    file.write_text("\n".join(cut))
    done = adapt("llava-video-178k", folder)
    assert done.code == 2
    assert f"{file}:6: not JSON" in done.err
    file.write_text('{"not": "a list"}')
    assert "not a list of records" in adapt("llava-video-178k", folder).err
    file.write_bytes(b"[\n\xff\xfe]")
    assert "not UTF-8" in adapt("llava-video-178k", folder).err


def test_texts_that_training_would_refuse_are_listed_one_by_one(adapt, tmp_path):
    folder = sharegpt4video(tmp_path / "set")
    touch(folder / "panda" / "c.mp4")
    rows = [
        sharegpt_row("panda/a.mp4"), sharegpt_row("pexels/b.mp4", caption=None),
        sharegpt_row("panda/c.mp4", caption="It says <|im_end|> here."),
    ]  # fmt: skip
    file = write_lines(folder / "sharegpt4video_40k.jsonl", rows)
    done = adapt("sharegpt4video", folder)
    assert len(done.videos) == 3  # pictures are whole, CTD needs no more
    assert len(load_conversations(done.chats_path)) == 1
    assert [row["kind"] for row in done.bad] == ["text", "text"]
    assert f"{file}:2: has no caption of the whole video" in done.bad[0]["reason"]
    assert f"{file}:3: turn 2: 'value' holds '<|im_end|>'" in done.bad[1]["reason"]


def test_wrong_options_are_refused(adapt, tmp_path, monkeypatch):
    folder = clevrer(tmp_path / "set")
    assert "splits of clevrer: train, validation, test" in adapt("clevrer", folder, "--split", "val").err
    assert "--videos is for sets that pack" in adapt("clevrer", folder, "--videos", tmp_path / "v").err
    assert "has no text" in adapt("ntu-rgbd", folder).err
    out = tmp_path / "out.jsonl"
    assert "give two files" in adapt("clevrer", folder, "--conversations", out, text=False).err
    monkeypatch.setattr(importlib, "import_module", _without_pyarrow(importlib.import_module))
    assert "pip install 'liteframe[finevideo]'" in adapt("finevideo", PUBLISHED["finevideo"](tmp_path / "f")).err


def _without_pyarrow(real):
    def load(name, *arguments):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *arguments)

    return load


def test_the_order_is_that_of_the_data_set(adapt, tmp_path):
    folder = sharegpt4video(tmp_path / "set")
    names = [f"panda/{i}.mp4" for i in (5, 3, 9, 1)]
    for name in names:
        touch(folder / name)
    write_lines(folder / "sharegpt4video_40k.jsonl", [sharegpt_row(name) for name in names])
    done = adapt("sharegpt4video", folder)
    assert [os.path.relpath(row["video"], folder) for row in done.videos] == names
    first = done.path.read_bytes(), done.chats_path.read_bytes()
    shutil.copytree(folder, tmp_path / "copy")
    again = adapt("sharegpt4video", folder)
    assert (again.path.read_bytes(), again.chats_path.read_bytes()) == first
    assert json.loads(first[0].splitlines()[0])["video"] == str(folder / names[0])
