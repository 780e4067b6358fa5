"""JSON and YAML say where they are wrong; what is replaced is whole or as it was."""

import math

import pytest

from liteframe.cli.main import main
from liteframe.files import check_output, replacing
from liteframe.texts import parse_json, read_json, read_jsonl, read_yaml


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


TAKEN = {
    "a byte order mark on a line of its own": (b'\xef\xbb\xbf\r\n{"a": 1}\r\n', [("2", {"a": 1})]),
    "files put one after the other": (
        b'{"a": 1}\n\xef\xbb\xbf{"a": 2}\n\xef\xbb\xbf\n', [("1", {"a": 1}), ("2", {"a": 2})],
    ),
    "separators that are no ends of lines": ('{"a": "\u2028\x85\u00a0"}'.encode(), [("1", {"a": "\u2028\x85\u00a0"})]),
    "both halves of a character": (b'{"a": "\\ud83d\\ude00\\\\ud800"}', [("1", {"a": "\U0001f600\\ud800"})]),
    "an escaped NUL": (b'{"a": "\\u0000"}', [("1", {"a": "\0"})]),
    "infinite": (b'{"a": -Infinity}', [("1", {"a": -math.inf})]),
    "an id of many digits": (b'{"a": 123456789012345678901234567890}', [("1", {"a": 123456789012345678901234567890})]),
    "a hundred lists": (b"[" * 100 + b"]" * 100, [("1", eval("[" * 100 + "]" * 100))]),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_odd_texts_are_taken(tmp_path, name):
    content, expected = TAKEN[name]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert list(read_jsonl(path)) == [(f"{path}:{line}", row) for line, row in expected]


REFUSED = {
    "deep": (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "more than 100 lists or objects stand in each other"),
    "deeper than messages can show": (b"[" * 101 + b"]" * 101, "more than 100 lists or objects"),
    "the first half": (b'{"a": "\\ud83d"}', r"holds half of a character \('\\ud83d'\)"),
    "the second half": (b'{"\\uDE00": 1}', r"holds half of a character \('\\ude00'\)"),
    "halves in the wrong order": (b'{"a": "\\ude00\\ud83d"}', "holds half of a character"),
    "a half in bytes": (b'{"a": "\xed\xa0\xbd"}', "not UTF-8 text"),
    "a key twice": (b'{"b": {"a": 1, "c": 2, "a": 3}}', "the key 'a' stands twice in one object"),
    "thousands of digits": (b'{"a": 1' + b"0" * 5000 + b"}", "5001 digits"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), r"not UTF-8 text \(perhaps UTF-16"),
    "UTF-16 without a mark": ('{"a": 1}'.encode("utf-16-le"), "perhaps UTF-16"),
    "UTF-32": ('{"a": 1}'.encode("utf-32"), "perhaps UTF-16"),
    "a NUL": (b'{"a": "b\0"}', "Invalid control character"),
    "lines of an old Macintosh": (b'{"a": 1}\r{"a": 2}', "Extra data"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_odd_texts_are_refused_with_their_place(tmp_path, name):
    content, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"^row 7: .*{message}.*; mend it$"):
        parse_json(content, "row 7", "mend it")
    path = tmp_path / "values.json"
    path.write_bytes(b"[1,\n" + content + b"]")
    with pytest.raises(ValueError, match=r"^.*values\.json(:2)?: "):
        read_json(path)


def test_half_a_character_is_found_in_its_line(tmp_path):
    path = tmp_path / "values.json"
    path.write_bytes(b'["\\ud83d\\ude00",\n"\\ud83d"]')
    with pytest.raises(ValueError, match=r"values\.json:2: holds half"):
        read_json(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nb: [\n", r"a\.yaml:3: not YAML"),
        (b"a: 1\nb:\n  c: 1\n  c: 2\n", r"a\.yaml:4: not YAML \(the key 'c' stands twice"),
        (b"a: " + b"[" * 2000, r"a\.yaml: more than 100 lists"),
        (b'a: "\\ud800"', r"a\.yaml:1: holds half of a character"),
        (b"a: 1\nb: \xff", r"a\.yaml:2: not UTF-8 text"),
        ("a: 1".encode("utf-16"), r"a\.yaml: not UTF-8 text \(perhaps UTF-16"),
        (b"a: 1\0", r"a\.yaml: not YAML \(unacceptable character"),
        (b"a: 1" + b"0" * 5000, r"a\.yaml: .*5001 digits"),
        (b"a: 2026-13-45", r"a\.yaml: month must be in 1..12"),
        (b"? [a]\n: b", r"a\.yaml:1: not YAML \(found unhashable key"),
        (b"a: !!python/object:os.system x", r"a\.yaml:1: not YAML \(could not determine a constructor"),
    ],
)
def test_bad_yaml_is_named(tmp_path, content, message):
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_yaml(tmp_path / "a.yaml")


def test_yaml_as_editors_write_it(tmp_path):
    (tmp_path / "a.yaml").write_bytes("\ufeffa: &x {b: ä, c: 1}\r\nd: {<<: *x, c: 2}\r\n".encode())
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"b": "ä", "c": 1}, "d": {"b": "ä", "c": 2}}


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
