"""Reading published annotation files: rows with their place, checked fields, and where videos are."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from liteframe.data.importers.base import DAMAGED, read_list
from liteframe.evaluate.benchmarks.base import LETTERS, Question
from liteframe.texts import read_jsonl

Row = dict[str, Any]
_CARRIED = re.compile(r"(?:\(([A-Z])\)|([A-Z])[.):])(?:\s+|$)(.*)", re.DOTALL)  # "A. red", "(A) red"
SUFFIXES = (".mp4", ".MP4", ".mkv", ".webm", ".avi", ".mov")


def rows_of(path: Path) -> Iterator[tuple[str, Row]]:
    """Each record of a .json, .jsonl or .parquet file with where it stands.

    Raises:
        ValueError: the file is broken or a record is no object; names file and line or number.
    """
    if path.suffix == ".parquet":
        rows: Iterator[tuple[str, Any]] = _parquet(path)
    else:
        rows = read_jsonl(path, DAMAGED) if path.suffix == ".jsonl" else read_list(path)
    for where, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{where}: a {type(row).__name__}, not an object with named fields")
        yield where, row


def find_files(folder: Path, patterns: Sequence[str], layout: str) -> list[Path]:
    """The files of the first pattern that has any, sorted.

    Raises:
        ValueError: no such folder, or none of the files.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected {layout}")
    for pattern in patterns:
        if files := sorted(path for path in folder.glob(pattern) if path.is_file()):
            return files
    names = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
    raise ValueError(f"{folder}: expected {layout}; found {shown}")


def text_field(row: Row, where: str, *names: str) -> str:
    """The text under the first of the names that the row has.

    Raises:
        ValueError: none is there, or it is no text, or empty.
    """
    for name in names:
        if row.get(name) is not None:
            value = row[name]
            if isinstance(value, int) and not isinstance(value, bool):
                value = str(value)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{where}: '{name}' must be a text that is not empty, got {value!r}")
            return value.strip()
    raise ValueError(f"{where}: lacks '{names[0]}'{f' (or {names[1:]})' if names[1:] else ''}; it has {sorted(row)}")


def seconds_field(row: Row, where: str, name: str) -> float | None:
    """A time in seconds, or None.

    Raises:
        ValueError: it is no number of 0 or more.
    """
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        raise ValueError(f"{where}: '{name}' must be seconds, 0 or more, got {value!r}")
    return float(value)


def options_field(row: Row, where: str, name: str, *, bare: bool = False) -> tuple[str, ...]:
    """Texts of the options; where all carry their own letters ("A. red", "(B) blue"), these are taken off.

    Args:
        row: the record.
        where: the record's place.
        name: of the list.
        bare: whether they must carry letters, with a space after them or not.

    Raises:
        ValueError: fewer than 2 or more than 26 texts, or letters out of order.
    """
    value = row.get(name)
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(x, str) for x in value):
        raise ValueError(f"{where}: '{name}' must be a list of texts, got {value!r}")
    if not 2 <= len(value) <= len(LETTERS):
        raise ValueError(f"{where}: '{name}' has {len(value)} options; a question has 2 to {len(LETTERS)}")
    texts = [text.strip() for text in value]
    if bare:
        for letter, text in zip(LETTERS, texts, strict=False):
            if not text.startswith((f"{letter}.", f"{letter})", f"{letter}:")):
                raise ValueError(f"{where}: option {text!r} of '{name}' should start with '{letter}.'")
        return tuple(text[2:].strip() for text in texts)
    carried = [_carried_letter(text) for text in texts]
    letters = "".join(letter for letter, _ in carried)
    if letters == LETTERS[: len(texts)]:
        return tuple(text for _, text in carried)
    if sorted(letters) == list(LETTERS[: len(texts)]):
        raise ValueError(
            f"{where}: options of '{name}' carry the letters {letters}; bring them into order, or leave out"
        )
    return tuple(texts)


def _carried_letter(text: str) -> tuple[str, str]:
    """The letter that a text starts with ("" for none) and the text after it."""
    match = _CARRIED.fullmatch(text)
    return (match[1] or match[2], match[3].strip()) if match else ("", text)


def answer_letter(answer: str, options: Sequence[str], where: str, *, kind: str | None = None) -> str:
    """The letter of an answer that is a letter or the text of an option (the last, where options repeat).

    Args:
        answer: as the record has it.
        options: their texts.
        where: the record's place.
        kind: "letter" or "text" where the benchmark always writes the one: options may be letters themselves. None
            takes both.

    Raises:
        ValueError: it is neither, or both at once.
    """
    letters = LETTERS[: len(options)]
    as_text = [letters[i] for i, text in enumerate(options) if text == answer] if kind != "letter" else []
    as_letter = answer if kind != "text" and len(answer) == 1 and answer in letters else None
    if as_letter and as_text and as_text != [as_letter]:
        raise ValueError(
            f"{where}: answer {answer!r} is a letter and also the text of option {as_text[-1]}; use letters"
        )
    found = as_letter or (as_text[-1] if as_text else None)
    letter, text = _carried_letter(answer)
    if found is None and letter and letter in letters and text == options[letters.index(letter)]:
        found = letter  # as options may be written
    if found is None:
        places = {"letter": f"none of {letters}", "text": f"no option of {list(options)}"}
        said = places.get(kind or "", f"neither one of {letters} nor an option of {list(options)}")
        raise ValueError(f"{where}: answer {answer!r} is {said}")
    return found


def listed_options(text: str, answer: str, where: str) -> str:
    """Letters of the options that a question lists itself, one a line ("A. red" or "(A) red").

    Raises:
        ValueError: it lists fewer than two, or the answer is none of them.
    """
    letters = ""
    for letter in re.findall(r"^\s*\(?([A-Z])[).:]", text, re.MULTILINE):
        letters += letter if letter == LETTERS[len(letters)] else ""
    if len(letters) < 2:
        raise ValueError(f"{where}: 'question' should list its options, one a line, from 'A.' on; got {text!r}")
    if len(answer) != 1 or answer not in letters:
        raise ValueError(f"{where}: answer {answer!r} is none of the letters {letters}")
    return letters


def find_video(folder: Path, bases: Sequence[str], name: str, where: str) -> str:
    """find_file for a video, whose name may lack its suffix."""
    return find_file(folder, bases, [name] if name.endswith(SUFFIXES) else [name + s for s in SUFFIXES], where)


def find_file(folder: Path, bases: Sequence[str], names: Sequence[str], where: str) -> str:
    """Path of a file that a record names; where it is missing, the first place where it should be.

    Args:
        folder: of the benchmark; names may not lead out of it.
        bases: folders below it in which names may start, in this order.
        names: the names that it may have.
        where: the record.

    Raises:
        ValueError: a name leads out of the folder.
    """
    for name in names:
        if os.path.isabs(name) or ".." in Path(name).parts or "\0" in name:
            raise ValueError(f"{where}: names the file {name!r}, which leads out of {folder}")
    places = [folder / base / name for base in bases for name in names]
    return str(next((path for path in places if path.is_file()), places[0]))


def check_questions(questions: Sequence[Question], layout: str) -> None:
    """Refuse what cannot be an evaluation.

    Raises:
        ValueError: no questions, two with one id, or not one of their videos there.
    """
    if not questions:
        raise ValueError("there are no questions in the annotation files")
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise ValueError(f"two questions have the id {question.id!r}; ids must differ")
        seen.add(question.id)
    if not any(os.path.isfile(question.video) for question in questions):
        raise ValueError(
            f"none of the {len({q.video for q in questions})} videos is there, such as {questions[0].video}; "
            f"expected {layout}"
        )


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise ValueError(f"{path} needs pyarrow: pip install 'liteframe[eval]'") from error
    arrow = importlib.import_module("pyarrow")
    try:
        rows = parquet.read_table(path).to_pylist()
    except arrow.ArrowException as error:
        raise ValueError(f"{path}: not a parquet file ({error}); download it again") from error
    for number, row in enumerate(rows, 1):
        yield f"{path}: row {number}", row
