"""JSON and JSONL say where they are wrong; what is replaced is whole or as it was."""

import pytest

from liteframe.cli.main import main
from liteframe.files import check_output, read_json, read_jsonl, replacing


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


def test_an_output_that_cannot_be_written_is_told_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path, folder, message in (
        (tmp_path / "folder", False, "is a folder; name a file"),
        (tmp_path / "file", True, "is a file; name a folder"),
        (tmp_path / "file" / "out.jsonl", False, "is not a folder"),
        (tmp_path / "file" / "deep" / "run", True, "is not a folder"),
        (tmp_path / ("n" * 250), False, "File name too long"),  # with room for the temporary name
        ("/proc/out.jsonl", False, "cannot be written"),
    ):
        with pytest.raises(ValueError, match=message):
            check_output(path, folder=folder)
    check_output(tmp_path / "new" / "out.jsonl")
    check_output(tmp_path / "folder", folder=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "new"]


def test_long_commands_look_at_their_output_first(tmp_path, capsys):
    """Each names the output, though nothing else that it is given is there."""
    (tmp_path / "file").touch()
    wrong, gone = str(tmp_path / "file" / "out"), str(tmp_path / "gone")
    for command in (
        ["scan", gone, "-o", wrong],
        ["manifest", "clevrer", gone, "-o", wrong],
        ["manifest", "merge", gone, "-o", wrong],
        ["cache", "build", "--config", gone, "--views", "1", "-o", wrong],
        ["eval", "hlvid", gone, "--vlm", gone, "-o", wrong],
        ["bench", "kernels", "-o", wrong],
        ["export", "onnx", gone, wrong],
        ["export", "hf-vlm", gone, wrong],
        ["plan", "--config", gone, "--json", wrong],
    ):
        assert main(command) == 2, command
        assert f"{wrong} cannot be made: {tmp_path / 'file'} is not a folder" in capsys.readouterr().err, command
