import json
import os

import pytest

from liteframe.data.manifest import VideoEntry, load_manifest, write_manifest
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


def test_jsonl_rows(tmp_path):
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
