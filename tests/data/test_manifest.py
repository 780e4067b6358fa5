import json
import os

import pytest

from liteframe.data.manifest import VideoEntry, load_folder, load_manifest, write_manifest
from liteframe.files import write_jsonl


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_a_folder_gives_its_videos_sorted(tmp_path):
    for name in ("b/two.MKV", "b/one.mp4", "a.webm", "notes.txt", ".hidden.mp4", "c.mp4/inner.ts"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.symlink(tmp_path / "gone", tmp_path / "dangling.mp4")
    found = [os.path.relpath(entry.video, tmp_path) for entry in load_manifest(tmp_path)]
    assert found == ["a.webm", "b/one.mp4", "b/two.MKV", "c.mp4/inner.ts", "dangling.mp4"]


def test_linked_folders_are_read_once_and_what_cannot_be_is_named(tmp_path, monkeypatch):
    data, disk = tmp_path / "data", tmp_path / "disk"
    for name in (data / "a.mp4", data / "own/b.mp4", disk / "deep/c.mp4", disk / "d.f4v", data / "locked/e.mp4"):
        name.parent.mkdir(parents=True, exist_ok=True)
        name.touch()
    for link, target in (("links/disk", disk), ("again", disk / "deep"), ("loop", data), ("up", ".."), ("me", "own")):
        (data / link).parent.mkdir(exist_ok=True)
        (data / link).symlink_to(target)
    for name in ("x.vob", "y.DIVX", "z.gif", "e.mpegts", "notes.txt", "noending", ".hidden.mp4"):
        (data / name).touch()
    scandir = os.scandir

    def locked(path):  # root may enter any folder
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    entries, listing = load_folder(data)
    found = [os.path.relpath(entry.video, data) for entry in entries]
    assert found == ["a.mp4", "again/c.mp4", "e.mpegts", "links/disk/d.f4v", "own/b.mp4", "x.vob", "y.DIVX", "z.gif"]
    assert listing.unreadable == {str(data / "locked"): "Permission denied"}
    assert set(listing.linked_again) == {str(data / name) for name in ("loop", "up", "me", "links/disk/deep")}
    assert listing.passed == {".txt": 1, "no ending": 1, "hidden": 1}
    with pytest.raises(ValueError, match=r"locked: cannot be looked into \(Permission denied\).*liteframe scan"):
        load_manifest(data)


def test_names_that_are_not_utf8_are_written_and_read(tmp_path):
    name = os.fsdecode(bytes(tmp_path) + b"/\xe9t\xe9.mp4")
    write_manifest([VideoEntry(name)], tmp_path / "m.jsonl")
    assert (tmp_path / "m.jsonl").read_text(encoding="utf-8").count("\\udce9") == 2
    assert load_manifest(tmp_path / "m.jsonl") == [VideoEntry(name)]
    bad = write(tmp_path / "half.jsonl", '{"video": "a\\ud800.mp4"}')
    with pytest.raises(ValueError, match=r"half\.jsonl:1: holds half of a character"):
        load_manifest(bad)


def test_jsonl_rows(tmp_path, caplog):
    manifest = write(
        tmp_path / "m.jsonl",
        {"video": "sub/a.mp4", "start": 1, "end": 2.5},
        "",
        {"video": "/data/b.mp4", "frames": 10, "reader": "decord", "conversations": []},
    )
    assert load_manifest(manifest) == [
        VideoEntry(str(tmp_path / "sub/a.mp4"), start=1.0, end=2.5),
        VideoEntry("/data/b.mp4", frames=10, reader="decord"),
    ]
    assert "1 of 2 rows tell how many frames there are, but not when they are shown" in caplog.text


def test_written_manifests_load_again(tmp_path):
    entries = [VideoEntry("/v/ä b.mp4", duration=1.5, fps=29.97, width=4, height=2, frames=45, reader="pyav")]
    write_manifest(entries, tmp_path / "new" / "good.jsonl")
    assert load_manifest(tmp_path / "new" / "good.jsonl") == entries
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["good.jsonl"]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    path = write(tmp_path / "good.jsonl", {"video": "/old.mp4"})

    def rows():
        yield {"video": "/new.mp4"}
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_jsonl(rows(), path)
    assert load_manifest(path) == [VideoEntry("/old.mp4")]
    assert [p.name for p in tmp_path.iterdir()] == ["good.jsonl"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json", "not JSON"),
        (["a.mp4"], "a row is an object"),
        ({"path": "a.mp4"}, "'video' is None"),
        ({"video": 3}, "'video' is 3"),
        ({"video": "http://example.org/a.mp4"}, "local files"),
        ({"video": "concat:a.mp4|b.mp4"}, "local files"),
        ({"video": "pipe:0"}, "local files"),
        ({"video": "a\0.mp4"}, "local files"),
        ({"video": "../secret.mp4"}, "leaves .*; write its absolute path"),
        ({"video": "a.mp4", "start": -1}, "start is -1"),
        ({"video": "a.mp4", "start": "1"}, "start is '1'"),
        ({"video": "a.mp4", "end": True}, "end is True"),
        ({"video": "a.mp4", "start": 2, "end": 2}, "is not after start"),
        ({"video": "a.mp4", "frames": 1.5}, "frames is 1.5"),
        ({"video": "a.mp4", "fps": 0}, "fps is 0"),
        ('{"video": "a.mp4", "duration": NaN}', "duration is nan"),
        ('{"video": "a.mp4", "end": 1' + "0" * 400 + "}", "end is 1000"),
        ('{"video": "a.mp4", "end": 1e999}', "end is inf"),
        ('{"video": "a.mp4", "video": "b.mp4"}', "the key 'video' stands twice"),
        ('{"video": "a.mp4", "note": "\\ud83d"}', "half of a character"),
        ('{"video": "a.mp4", "note": ' + "[" * 100_000 + "]" * 100_000 + "}", "more than 100 lists"),
        ({"video": "a.mp4", "reader": "vlc"}, "known readers: pyav, decord"),
        ({"video": "a.mp4", "video_track": -1}, "video_track is -1"),
        (
            {"video": "a.mp4", "frames": 4, "fps": 2, "breaks": [[0, 0], [3, 2]]},
            "not rise from frame 0.*to frame 4",
        ),
        (
            {"video": "a.mp4", "frames": 4, "fps": 2, "breaks": [[0, 1], [4, 0]]},
            "not rise from frame 0.*to frame 4",
        ),
        ({"video": "a.mp4", "frames": 4, "fps": 2, "breaks": "0-4"}, "breaks is '0-4'.*liteframe scan"),
        ({"video": "a.mp4", "breaks": [[0, 0], [4, 2]]}, "beside frames and fps"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, row, message):
    manifest = write(tmp_path / "m.jsonl", {"video": "ok.mp4"}, row)
    with pytest.raises(ValueError, match=message) as caught:
        load_manifest(manifest)
    assert f"{manifest}:2" in str(caught.value)


def test_sources_that_are_no_manifest(tmp_path):
    with pytest.raises(ValueError, match="no such folder or manifest"):
        load_manifest(tmp_path / "gone.jsonl")
    with pytest.raises(ValueError, match="no video below this folder"):
        load_manifest(tmp_path)
    with pytest.raises(ValueError, match="holds no row"):
        load_manifest(write(tmp_path / "empty.jsonl"))
    (tmp_path / "a.mp4").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="this is a video"):
        load_manifest(tmp_path / "a.mp4")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary\.jsonl:1: not UTF-8 text.*a manifest is JSONL"):
        load_manifest(tmp_path / "binary.jsonl")
