"""A manifest that came with its videos names nothing outside its folder, however it tries."""

import json
import os

import pytest

from liteframe.cli.main import main as liteframe
from liteframe.data.manifest import load_manifest


@pytest.fixture
def world(tmp_path):
    """data/ with a video and links, secret/ beside it."""
    data, secret = tmp_path / "data", tmp_path / "secret"
    (data / "sub").mkdir(parents=True)
    secret.mkdir()
    for path in (data / "a.mp4", data / "sub" / "b.mp4", secret / "s.mp4"):
        path.write_bytes(b"video")
    os.symlink(secret, data / "folder_link")
    os.symlink(secret / "s.mp4", data / "file_link.mp4")
    os.symlink("../../secret/s.mp4", data / "sub" / "relative_link.mp4")
    os.symlink(data / "sub" / "relative_link.mp4", data / "chain.mp4")
    os.symlink(secret / "not_there_yet.mp4", data / "dangling.mp4")
    os.symlink(data / "a.mp4", data / "inner_link.mp4")
    os.symlink("sub", data / "inner_folder")
    os.symlink("loop.mp4", data / "loop.mp4")
    return tmp_path


def write(folder, *videos):
    path = folder / "m.jsonl"
    path.write_text("".join(json.dumps({"video": video}) + "\n" for video in videos))
    return path


@pytest.mark.parametrize(
    "video",
    [
        "../secret/s.mp4",
        "sub/../../secret/s.mp4",
        "./../secret/s.mp4",
        "..",
        "folder_link/s.mp4",
        "folder_link/new.mp4",
        "inner_folder/../folder_link/s.mp4",
        "file_link.mp4",
        "sub/relative_link.mp4",
        "inner_folder/relative_link.mp4",
        "chain.mp4",
        "dangling.mp4",
    ],
)
def test_relative_names_do_not_leave_the_folder(world, video, monkeypatch):
    manifest = write(world / "data", "a.mp4", video)
    with pytest.raises(ValueError, match=r"leaves .*data; write its absolute path") as caught:
        load_manifest(manifest)
    assert f"{manifest}:2" in str(caught.value)
    monkeypatch.chdir(world / "data")
    with pytest.raises(ValueError, match=r"leaves .*data; write its absolute path"):
        load_manifest("m.jsonl")


@pytest.mark.parametrize(
    "video",
    ["http://h/a.mp4", "https://h/a.mp4", "file:///etc/passwd", "FILE:/etc/passwd", "s3://b/a.mp4", "data:video/mp4,x",
     "concat:a.mp4|b.mp4", "crypto+file:a.mp4", "pipe:0", "a.mp4\0.jpg", "\0"],
)  # fmt: skip
def test_addresses_and_nul_are_no_paths(world, video):
    with pytest.raises(ValueError, match="only paths of local files are read"):
        load_manifest(write(world / "data", video))


def test_names_below_the_folder_stay(world):
    names = ["a.mp4", "sub/b.mp4", "./sub/../a.mp4", "inner_link.mp4", "inner_folder/b.mp4", "..a.mp4", "not/there.mp4"]
    found = [entry.video for entry in load_manifest(write(world / "data", *names))]
    assert found == [os.path.normpath(world / "data" / name) for name in names]
    # The folder itself may be reached through a link.
    os.symlink(world / "data", world / "door")
    found = [entry.video for entry in load_manifest(world / "door" / "m.jsonl")]
    assert found == [os.path.normpath(world / "door" / name) for name in names]
    load_manifest(write(world / "data", "loop.mp4"))  # leads nowhere; reading it is an error


def test_absolute_paths_are_the_users_own_and_scan_writes_them(world, tmp_path):
    (path,) = load_manifest(write(world / "data", str(world / "secret" / "s.mp4")))
    assert path.video == str(world / "secret" / "s.mp4")
    output = tmp_path / "lists" / "good.jsonl"
    assert liteframe(["scan", str(world / "data" / "sub"), "-o", str(output), "--workers", "1"]) == 1  # no real video
    bad = [json.loads(line)["video"] for line in output.with_name("good.bad.jsonl").read_text().splitlines()]
    assert bad == [str(world / "data" / "sub" / name) for name in ("b.mp4", "relative_link.mp4")]
    assert [entry.video for entry in load_manifest(output.with_name("good.bad.jsonl"))] == bad
