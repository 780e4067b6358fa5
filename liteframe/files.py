"""Files that are whole or absent, whatever kills the writer; JSON and YAML that say where they are wrong; digests.

What is written lies beside its place, as `.<name>.<process>.tmp`, until it is complete; then it is renamed.
"""

import codecs
import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import yaml

INDEX = "model.safetensors.index.json"
MAX_DEPTH = 100  # of lists in lists: far below what Python's own recursion stands
# One of the two escapes that make a rare character, and one that stands alone, as where a text was cut between them.
_PART = re.compile(rb"\\u[dD][89a-fA-F]")
_HALF = re.compile(rb"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]..", re.DOTALL)
# Checkpoints that come with LiteFrame: the tiny InternVL of toyworld.
SHIPPED = {"toyworld": str(Path(__file__).resolve().parent / "toyworld" / "checkpoint")}


def checkpoint_source(name: Any) -> str:
    """What transformers loads for a name: a shipped checkpoint's folder; else the folder or Hugging Face id itself."""
    name = os.fspath(name)
    return name if os.path.isdir(name) else SHIPPED.get(name, name)


def check_weight_index(source: Any) -> None:
    """Refuse a local checkpoint whose index names anything but safetensors files of its own folder.

    transformers joins the names to the folder as they are; files of a hub id lie in its cache, under the cache's names.

    Raises:
        ValueError: the index is damaged, or names another place or another format.
    """
    path = Path(os.fspath(source)) / INDEX
    if not path.is_file():
        return
    try:
        names = read_json(path)["weight_map"].values()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); copy or download the checkpoint again") from error
    for name in names:
        plain = isinstance(name, str) and name == PurePath(name).name and "\\" not in name and "\0" not in name
        if not plain or not name.endswith(".safetensors"):
            raise ValueError(
                f"{path} names {name!r}; only safetensors files of the same folder are read. "
                "Do not trust this checkpoint"
            )


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under a temporary name in its own folder, flush it to the disk, then rename it."""
    with durable_file(path, needed=len(data)) as file:
        file.write(data)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write readable JSON atomically; numbers that are not finite, as in the loss of a skipped step, become null."""
    write_atomically(path, json_bytes(_finite(values), indent=2))


def write_jsonl(rows: Iterable[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write one line of JSON a row, all of them or none."""
    write_lines(map(json_bytes, rows), path)


def write_lines(lines: Iterable[bytes], path: str | os.PathLike[str]) -> None:
    """Write lines that have their ends, all of them or none."""
    with durable_file(Path(path)) as file:
        for line in lines:
            file.write(line)


def json_bytes(value: Any, **options: Any) -> bytes:
    r"""A value as JSON in UTF-8, and a line end.

    A file's name need not be UTF-8: Python holds its other bytes as lone surrogates, which are written as JSON's
    `\udcff`, so that whoever reads them opens the same file.

    Args:
        value: JSON-able.
        **options: of json.dumps.
    """
    return (json.dumps(value, ensure_ascii=False, **options) + "\n").encode("utf-8", "backslashreplace")


def show_any_name() -> None:
    """Let this process print names that are not UTF-8, or not in the terminal's encoding, with backslashes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def read_json(path: Path, remedy: str = "") -> Any:
    """The values of a JSON file; what `parse_json` takes and refuses.

    Raises:
        ValueError: it is not JSON; names file, line and `remedy`.
    """
    return parse_json(path.read_bytes(), str(path), remedy, lines=True)


def read_jsonl(path: Path, remedy: str = "") -> Iterator[tuple[str, Any]]:
    """Each row of a JSONL file with where it stands, `file:3`.

    Raises:
        ValueError: a row is not JSON; names file, line and `remedy`.
    """
    for where, line in jsonl_lines(path):
        yield where, parse_json(line, where, remedy)


def jsonl_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """The lines of a file that are not blank, with where each stands, `file:3`."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.removeprefix(codecs.BOM_UTF8).strip():
                yield f"{path}:{number}", line


def parse_json(data: bytes, where: str, remedy: str = "", *, lines: bool = False) -> Any:
    """The values of UTF-8 text, with or without a byte order mark; NaN and Infinity are numbers.

    Args:
        data: of a file, or a line of one.
        where: how the message begins.
        remedy: how the message ends.
        lines: whether the message tells the line within `data`, too.

    Raises:
        ValueError: it is not JSON, has a key twice in one object (the first would be passed over), half of a character
            (which no file and no tokenizer takes), more than MAX_DEPTH lists or objects in each other, or a number of
            thousands of digits.
    """
    try:
        values = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_unique)
        if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _too_deep(values):
            raise RecursionError
        if _PART.search(data):
            json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except (ValueError, RecursionError) as error:
        raise _named(error, data, where, remedy, lines=lines) from error
    return values


def read_yaml(path: Path, remedy: str = "") -> Any:
    """The plain values of a YAML file of UTF-8 text, with or without a byte order mark.

    Raises:
        ValueError: it is not YAML, or has what `parse_json` refuses; names file, line where it is known, and `remedy`.
    """
    data = path.read_bytes()
    try:
        return yaml.load(data.decode("utf-8-sig"), _UniqueKeys)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _named(error, data, str(path), remedy, lines=True) from error


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, of which PyYAML passes over the first, and half characters."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=_twice(key.value), problem_mark=key.start_mark)
            seen.add(str(key.value))
        return node

    def compose_scalar_node(self, anchor: Any) -> Any:
        node = super().compose_scalar_node(anchor)
        node.value.encode("utf-8", "surrogateescape")
        return node


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(_twice(max(names, key=names.count)))
    return values


def _twice(key: str) -> str:
    return f"the key {key!r} stands twice in one object; keep one of them"


def _too_deep(values: Any) -> bool:
    level = [values]
    for _ in range(MAX_DEPTH):
        inner = [value for held in level for value in (held.values() if isinstance(held, dict) else held)]
        level = [value for value in inner if isinstance(value, dict | list)]
        if not level:
            return False
    return True


def _named(error: Exception, data: bytes, where: str, remedy: str, *, lines: bool) -> ValueError:
    """What a reader of `data` raised, with its place and what to do."""
    line: int | None = None
    reason = str(error)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data[:4]:
        reason = "not UTF-8 text (perhaps UTF-16, as PowerShell writes it; save it as UTF-8)"
    elif isinstance(error, json.JSONDecodeError):
        line, reason = error.lineno, f"not JSON ({error.msg} at column {error.colno})"
    elif isinstance(error, UnicodeDecodeError):
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        reason = f"not UTF-8 text ({error.reason} at byte {column})"
    elif isinstance(error, UnicodeEncodeError):
        half = _HALF.search(data)
        line = data.count(b"\n", 0, half.start()) + 1 if half else None
        reason = f"holds half of a character ({error.object[error.start]!a})"
    elif isinstance(error, RecursionError):
        reason = f"more than {MAX_DEPTH} lists or objects stand in each other"
    elif isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark or error.context_mark):
        line, reason = mark.line + 1, f"not YAML ({error.problem or error.context})"
    elif isinstance(error, yaml.YAMLError):
        reason = f"not YAML ({error})"
    return ValueError(f"{where}{f':{line}' if lines and line else ''}: {reason}{f'; {remedy}' if remedy else ''}")


def file_digest(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Full disk, spent quota, largest file size of the process (ulimit -f).
OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class OutOfSpaceError(OSError):
    """A file does not fit on its file system; what stood in its place is untouched."""


class HashingFile:
    """Passes writes on, and keeps their digest and number.

    A writer in C++ may hide an error of `write` behind one of its own; the first is kept in `error`.
    """

    def __init__(self, file: BinaryIO):
        self._file, self._digest = file, hashlib.sha256()
        self.bytes = 0
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Write to the file and to the digest; returns the bytes written, and keeps the first OSError."""
        try:
            count = self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        self._digest.update(data)
        self.bytes += count
        return count

    def flush(self) -> None:
        """Hand what is buffered to the system."""
        self._file.flush()

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of what was written so far."""
        return self._digest.hexdigest()


@contextmanager
def durable_file(path: Path, needed: int | None = None) -> Iterator[HashingFile]:
    """Write `path` in one piece.

    The temporary file lies in the same folder, since a rename from another file system is a copy. Left-overs of killed
    processes are named `.<name>.<process>.tmp`.

    Args:
        path: final name; its folder is made.
        needed: size in bytes, if known, for the message.

    Raises:
        OutOfSpaceError: the file does not fit; `path` is as it was.
        OSError: it cannot be written for another reason; `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    writer: HashingFile | None = None
    try:
        with temporary.open("wb") as file:
            writer = HashingFile(file)
            yield writer
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_path(path.parent)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        cause = (writer.error if writer else None) or error
        if not isinstance(cause, OSError):
            raise
        if cause.errno in OUT_OF_SPACE:
            raise OutOfSpaceError(cause.errno, _no_space(path, needed, cause)) from error
        raise cause from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` for a file or folder, which takes its place when the block ends well, and vanishes if not.

    For writers that take a path. Nothing is flushed to the disk, as `durable_file` does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _remove(temporary)
    try:
        yield temporary
        if temporary.is_dir():
            _remove(path)
        os.replace(temporary, path)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_output(path: str | os.PathLike[str], *, folder: bool = False) -> None:
    """Refuse, before the work, what could not be written after it.

    Args:
        path: that a command will write; its folder is made.
        folder: whether a folder is meant.

    Raises:
        ValueError: a folder stands where a file should, the other way round, or nothing can be written there.
    """
    path = Path(path)
    try:
        if path.exists() and path.is_dir() != folder:
            kinds = ("a folder; name a file", "a file; name a folder")
            raise ValueError(f"the output {path} is {kinds[folder]}")
        path.parent.mkdir(parents=True, exist_ok=True)
        for place in (path / "x", path) if folder and path.exists() else (path,):
            temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
            temporary.touch()  # access rights say nothing to root, nor of disks that are read-only or full
            temporary.unlink()
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"the output {path} cannot be made: {path.parent} is not a folder") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"the output {path} cannot be written ({reason}); name another place") from error


def fsync_path(path: Path) -> None:
    """Make what a file holds, or the renames within a folder, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _no_space(path: Path, needed: int | None, error: OSError) -> str:
    size = "more bytes than there are" if needed is None else f"at least {needed:,} bytes"
    return (
        f"{path} needs {size}, and {shutil.disk_usage(path.parent).free:,} bytes are free on its file system "
        f"({error.strerror})"
    )
