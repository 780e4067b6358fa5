"""JSON and JSONL say where they are wrong; what is replaced is whole or as it was."""

import pytest

from liteframe.files import read_json, read_jsonl, replacing


def test_rows_come_with_their_places(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('\ufeff{"a": "ä"}\r\n\r\n  \n[1]'.encode())
    assert list(read_jsonl(path)) == [(f"{path}:1", {"a": "ä"}), (f"{path}:4", [1])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": }\n', r"rows\.jsonl:2: not JSON \(Expecting value at column 7\); copy it again"),
        (
            b'{"a": 1}\n\n{"a": "\xff"}\n',
            r"rows\.jsonl:3: not UTF-8 text \(invalid start byte at byte 8\); copy it again",
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    rows = read_jsonl(path, "copy it again")
    assert next(rows) == (f"{path}:1", {"a": 1})
    with pytest.raises(ValueError, match=message):
        list(rows)


def test_a_bad_line_of_a_file_is_named(tmp_path):
    path = tmp_path / "values.json"
    path.write_bytes(b'\xef\xbb\xbf{"a":\n 1}')
    assert read_json(path) == {"a": 1}
    path.write_bytes(b'{"a":\n oops}')
    with pytest.raises(ValueError, match=r"values\.json:2: not JSON \(Expecting value at column 2\)$"):
        read_json(path)
    path.write_bytes(b'{"a":\n "\xff"}')
    with pytest.raises(ValueError, match=r"values\.json:2: not UTF-8 text \(invalid start byte at byte 3\)$"):
        read_json(path)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_replacement_that_fails_leaves_what_was_there(tmp_path, kind):
    def write(path, text):
        if kind == "folder":
            path.mkdir()
        (path / "inner" if kind == "folder" else path).write_text(text)

    def read(path):
        return (path / "inner" if kind == "folder" else path).read_text()

    target = tmp_path / "new" / "target"
    with replacing(target) as temporary:
        write(temporary, "first")
    attempt = replacing(target)
    write(attempt.__enter__(), "second")
    assert not attempt.__exit__(KeyError, KeyError(), None)
    assert read(target) == "first"
    with replacing(target) as temporary:
        write(temporary, "third")
    assert read(target) == "third"
    assert list(target.parent.iterdir()) == [target]
