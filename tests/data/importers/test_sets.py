"""What is particular to each data set."""

import os
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from worlds.published import (
    NTU_CLIPS,
    clevrer,
    finevideo,
    finevideo_row,
    llava_row,
    llava_video,
    ntu_rgbd,
    sharegpt4video,
    touch,
    write_list,
    write_parquet,
)

from liteframe.data.importers import finevideo as finevideo_module


def turns(chat):
    return [(turn["from"], turn["value"]) for turn in chat["conversations"]]


def test_sharegpt4video_takes_the_caption_of_the_whole_video(adapt, tmp_path):
    done = adapt("sharegpt4video", sharegpt4video(tmp_path / "set"))
    assert [row["video"] for row in done.videos] == [
        str(tmp_path / "set" / "panda" / "a.mp4"), str(tmp_path / "set" / "zip_folder" / "pexels" / "b.mp4"),
    ]  # fmt: skip
    assert turns(done.chats[0])[1] == ("gpt", "A dog runs over a field.")
    assert turns(done.chats[0])[0][1].startswith("<video>\n")


def test_llava_video_has_one_row_a_video_and_all_its_conversations(adapt, tmp_path):
    folder = llava_video(tmp_path / "set")
    subset = folder / "0_30_s_academic_v0_1"
    done = adapt("llava-video-178k", folder)
    (row,) = done.videos
    assert row == {
        "video": str(subset / "academic_source" / "Charades" / "a.mp4"), "data_source": "0_30_s_academic_v0_1",
    }  # fmt: skip
    # files in the order of their names: captions are named after the subset, questions are not
    chosen, asked, caption = (turns(chat) for chat in done.chats)
    assert asked == [
        ("human", "<video>\nWhat does he open?"), ("gpt", "A door."), ("human", "And then?"), ("gpt", "He leaves."),
    ]  # fmt: skip
    assert caption[0] == ("human", "<video>\nPlease describe the video.")
    assert chosen[1] == ("gpt", "A.")
    # a subset alone is as good as the whole set
    assert adapt("llava-video-178k", subset).chats == done.chats


def test_llava_video_lists_folders_of_frames_and_placeholders_in_answers(adapt, tmp_path):
    folder = llava_video(tmp_path / "set")
    hound = folder / "llava_hound"
    touch(hound / "frames" / "v1" / "c01.jpeg")
    video = touch(hound / "v2.mp4")
    rows = [
        llava_row("frames/v1", ("Why?", "So.")), llava_row("v2.mp4", ("Why?", "See <image>.")),
        llava_row("v2.mp4", ("Why?", "So."), first=""), {"id": "no video"}, "text",
    ]  # fmt: skip
    write_list(hound / "sharegptvideo_qa_255k_processed.json", rows)
    done = adapt("llava-video-178k", folder)
    assert str(video) in [row["video"] for row in done.videos]
    assert [row["kind"] for row in done.bad] == ["frames", "text", "record"]
    assert done.bad[2]["records"] == 2
    assert turns(done.chats[-1]) == [("human", "Why?"), ("gpt", "So.")]  # <video> is put before it when it is read


def test_clevrer_writes_choices_with_letters(adapt, tmp_path):
    folder = clevrer(tmp_path / "set")
    done = adapt("clevrer", folder)
    assert [row["video"] for row in done.videos] == [
        str(folder / "video_train" / "video_00000-01000" / "video_00000.mp4"),
        str(folder / "video_train" / "video_01000-02000" / "video_01003.mp4"),
    ]
    assert {row["split"] for row in done.videos} == {"train"}
    described, blue, explained, letters, predicted, none = turns(done.chats[0])
    assert (described, blue) == (("human", "What color is the cube?"), ("gpt", "blue"))
    assert explained[1].splitlines() == [
        "Which is responsible for the collision?", "A. the cube", "B. the sphere", "C. the cylinder",
        "Answer with the letters of all that are right, or with None.",
    ]  # fmt: skip
    assert letters == ("gpt", "A, C")
    assert none == ("gpt", "None")
    assert len(adapt("clevrer", folder, "--split", "validation").chats) == 1


def test_clevrer_test_split_has_no_answers(adapt, tmp_path):
    done = adapt("clevrer", clevrer(tmp_path / "set"), "--split", "test")
    assert done.code == 0
    assert len(done.videos) == 1
    assert done.chats is None
    assert "chats.jsonl was not written" in done.out


def test_clevrer_without_questions_and_with_missing_or_odd_scenes(adapt, tmp_path):
    folder = clevrer(tmp_path / "set")
    write_list(folder / "train.json", [{"scene_index": n, "questions": None} for n in (0, 7, -1, True, "../x", None)])
    done = adapt("clevrer", folder)
    assert len(done.videos) == 1
    assert [(row["kind"], row["video"]) for row in done.bad] == [
        ("missing", "video_train/video_00000-01000/video_00007.mp4"), ("record", "scene -1"), ("record", "scene True"),
        ("record", "scene ../x"), ("record", "scene None"),
    ]  # fmt: skip
    assert "unzip video_train.zip" in done.bad[0]["remedy"]
    (folder / "train.json").unlink()
    assert len(adapt("clevrer", folder).videos) == 2


def test_ntu_rgbd_reads_the_name(adapt, tmp_path):
    folder = ntu_rgbd(tmp_path / "set")
    done = adapt("ntu-rgbd", folder, text=False)
    assert [os.path.basename(row["video"])[:20] for row in done.videos] == sorted(NTU_CLIPS)
    facts = {key: value for key, value in done.videos[1].items() if key != "video"}
    assert facts == {"setup": 1, "camera": 2, "person": 3, "replication": 2, "action": 13}


@pytest.mark.parametrize(
    ("split", "persons"),
    [
        ("cross-subject-train", {1, 8, 103}), ("cross-subject-test", {3}), ("cross-view-train", {3, 8}),
        ("cross-view-test", {1, 103}), ("cross-setup-train", {8, 103}), ("cross-setup-test", {1, 3}),
    ],
)  # fmt: skip
def test_ntu_rgbd_splits(adapt, tmp_path, split, persons):
    done = adapt("ntu-rgbd", ntu_rgbd(tmp_path / "set"), "--split", split, text=False)
    assert {row["person"] for row in done.videos} == persons


def test_ntu_rgbd_lists_odd_names_links_and_clips_that_are_there_twice(adapt, tmp_path):
    folder = ntu_rgbd(tmp_path / "set")
    clip = f"{NTU_CLIPS[0]}_rgb.avi"
    touch(folder / "nturgb+d_rgb_120" / clip)
    touch(folder / "nturgb+d_rgb" / "S1C1P1R1A1_rgb.avi")
    os.symlink(touch(tmp_path / "secret.avi"), folder / "nturgb+d_rgb" / "S017C003P020R002A060_rgb.avi")
    done = adapt("ntu-rgbd", folder, text=False)
    assert len(done.videos) == len(NTU_CLIPS)
    assert sorted((row["kind"], os.path.basename(row["video"])) for row in done.bad) == [
        ("duplicate", clip), ("name", "S1C1P1R1A1_rgb.avi"), ("outside", "S017C003P020R002A060_rgb.avi"),
    ]  # fmt: skip


def contents(done):
    return [open(row["video"], "rb").read() for row in done.videos]


def test_finevideo_writes_the_videos_and_what_attribution_needs(adapt, tmp_path):
    done = adapt("finevideo", finevideo(tmp_path / "set"))
    assert contents(done) == [b"mp4 of %d" % i for i in range(5)]
    assert all(row["video"].startswith(str(tmp_path / "videos")) for row in done.videos)
    assert [row["title"] for row in done.videos] == [f"Talk {i}" for i in range(5)]
    assert {row["channel"] for row in done.videos} == {"A channel"}
    caption, asked = (turns(chat) for chat in done.chats[2:4])
    assert caption[1] == ("gpt", "A talk, number 1.")
    assert asked == [
        ("human", "Who talks?"), ("gpt", "She."), ("human", "Where?"), ("gpt", "Room 1."),
    ]  # fmt: skip


def test_finevideo_goes_on_where_it_was_cut_off(adapt, tmp_path, monkeypatch):
    folder = finevideo(tmp_path / "set")
    write, written = finevideo_module.write_atomically, []

    def failing(path, content):
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(path)
        write(path, content)

    monkeypatch.setattr(finevideo_module, "write_atomically", failing)
    done = adapt("finevideo", folder)
    assert done.code == 2
    assert "No space left" in done.err
    assert done.videos is None
    monkeypatch.setattr(
        finevideo_module, "write_atomically", lambda path, content: (written.append(path), write(path, content))
    )
    done = adapt("finevideo", folder)
    assert contents(done) == [b"mp4 of %d" % i for i in range(5)]
    assert len(written) == len(set(written)) == 5  # none twice
    assert adapt("finevideo", folder).videos == done.videos
    assert len(written) == 5


def test_finevideo_refuses_when_the_disk_is_too_small(adapt, tmp_path, monkeypatch):
    monkeypatch.setattr(finevideo_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    done = adapt("finevideo", finevideo(tmp_path / "set"))
    assert done.code == 2
    assert "give --videos on a larger disk" in done.err
    assert not list((tmp_path / "videos").rglob("*.mp4"))


def test_finevideo_lists_damaged_files_and_empty_rows_and_uses_the_rest(adapt, tmp_path):
    folder = finevideo(tmp_path / "set")
    cut = folder / "data" / "train-00000-of-00002.parquet"
    cut.write_bytes(cut.read_bytes()[:-30])
    touch(folder / "data" / "train-00003.parquet", b"")
    rows = [finevideo_row(7, b""), finevideo_row(8) | {"mp4": None}, finevideo_row(9) | {"json": None}]
    write_parquet(folder / "data" / "train-00002.parquet", rows)
    done = adapt("finevideo", folder)
    assert done.code == 0
    assert contents(done) == [b"mp4 of 3", b"mp4 of 4", b"mp4 of 9"]
    assert [(row["kind"], os.path.basename(row["where"])[:26]) for row in done.bad] == [
        ("damaged", "train-00000-of-00002.parqu"), ("damaged", "train-00003.parquet"),
        ("missing", "train-00002.parquet: row 0"), ("missing", "train-00002.parquet: row 1"),
    ]  # fmt: skip


def test_finevideo_lists_damage_inside_a_file(adapt, tmp_path):
    path = tmp_path / "set" / "data" / "train-00000.parquet"
    path.parent.mkdir(parents=True)
    rows = [finevideo_row(i, os.urandom(3000)) for i in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2, compression="zstd", write_page_checksum=True)
    column = pq.read_metadata(path).row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset : column.data_page_offset + 1000] = bytes(1000)
    path.write_bytes(content)
    done = adapt("finevideo", tmp_path / "set")
    assert contents(done) == [row["mp4"] for row in rows[:2]]
    assert [row["kind"] for row in done.bad] == ["damaged"]


def test_finevideo_names_what_a_newer_version_no_longer_holds(adapt, tmp_path):
    folder = finevideo(tmp_path / "set")
    old = adapt("finevideo", folder)
    (tmp_path / "videos" / "my own").mkdir()
    write_parquet(folder / "data" / "train-00000-of-00002.parquet", [finevideo_row(i) for i in (0, 2)])
    done = adapt("finevideo", folder)
    assert contents(done) == [b"mp4 of %d" % i for i in (0, 2, 3, 4)]
    (stale,) = done.bad
    assert stale["kind"] == "stale"
    assert stale["video"] == os.path.dirname(old.videos[0]["video"])
    assert "3 videos" in stale["reason"]


def test_finevideo_refuses_other_parquet_files(adapt, tmp_path):
    write_parquet(tmp_path / "set" / "other.parquet", [{"text": "a"}])
    done = adapt("finevideo", tmp_path / "set")
    assert done.code == 2
    assert "has columns text; expected mp4 and json" in done.err
