"""Which files there are below a folder, and where a manifest may point."""

from __future__ import annotations

import os
import re
from collections import Counter, deque
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.\-]+:")


class Containment:
    """Tells whether names stay below a folder once links are followed; looks at each folder once.

    Args:
        folder: the root.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = os.path.abspath(folder)
        self._root = os.path.realpath(folder)
        self._parents: dict[str, str] = {}

    def path(self, name: str) -> str | None:
        """The absolute path of a relative name, or None if it leads out of the folder."""
        path = os.path.normpath(os.path.join(self.folder, name))
        parent, last = os.path.split(path)
        if parent not in self._parents:
            self._parents[parent] = os.path.realpath(parent)
        real = os.path.join(self._parents[parent], last)
        if os.path.islink(real):
            real = os.path.realpath(real)
        pairs = ((self.folder, path), (self._root, real))
        return path if all(f"{found}{os.sep}".startswith(os.path.join(root, "")) for root, found in pairs) else None


def local_path(value: Any, inside: Containment, what: str) -> str:
    """The absolute path that a row names.

    Raises:
        ValueError: it is no local path, or a relative one that leaves the folder; the message starts with `what`.
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} is {value!r}; it must be the path of a file")
    if "\0" in value or _SCHEME.match(value):
        raise ValueError(f"{what} is {value!r}; only paths of local files are read, download it first")
    try:
        os.fsencode(value)
    except UnicodeEncodeError as error:
        reason = f"{value[error.start]!a} at character {error.start + 1} is half a character"
        raise ValueError(f"{what} is {value!a}; no file can have this name, {reason}") from error
    if os.path.isabs(value):
        return os.path.normpath(value)
    if (path := inside.path(value)) is None:
        raise ValueError(f"{what}: {value!r} leaves {inside.folder}; write its absolute path if you mean it")
    return path


@dataclass
class Listing:
    """What lies below a folder.

    Attributes:
        files: absolute paths of the files that were looked for, sorted folder by folder; links in them stay.
        unreadable: what could not be looked into, with the reason.
        linked_again: links to folders that are read under another name, and where they lead.
        passed: how many other files there are, by ending.
    """

    files: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    linked_again: dict[str, str] = field(default_factory=dict)
    passed: Counter[str] = field(default_factory=Counter)


def list_folder(folder: str | os.PathLike[str], suffixes: Container[str]) -> Listing:
    """All files below a folder that have one of these endings and no dot in front.

    Links to folders are followed, after all that lies below the folder itself, and each folder is read once.
    """
    found, root = Listing(), os.path.abspath(folder)
    real_root = os.path.realpath(root)
    waiting, links, seen = deque([root]), deque[str](), set[tuple[int, int]]()
    while waiting or links:
        here = waiting.popleft() if waiting else links.popleft()
        real = os.path.realpath(here)
        if here != root and f"{real_root}{os.sep}".startswith(os.path.join(real, "")):
            found.linked_again[here] = real  # or a link to / would read the whole disk
            continue
        try:
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in seen:
                found.linked_again[here] = real
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(here) as entries:
                for entry in entries:
                    if _is_folder(entry, found):
                        (links if entry.is_symlink() else waiting).append(entry.path)
                    elif _ending(entry.name) in suffixes:
                        found.files.append(entry.path)
                    else:
                        found.passed[_ending(entry.name)] += 1
        except OSError as error:
            found.unreadable[here] = error.strerror or str(error)
        if not waiting:
            links = deque(sorted(links))
    found.files.sort(key=in_order)
    return found


def in_order(path: str) -> str:
    """The key by which paths sort folder by folder."""
    return path.replace(os.sep, "\0")


def _is_folder(entry: os.DirEntry[str], found: Listing) -> bool:
    try:
        return entry.is_dir()
    except PermissionError as error:  # a link into a folder that may not be entered
        found.unreadable[entry.path] = error.strerror or str(error)
    except OSError:  # a link to itself: no folder
        pass
    return False


def _ending(name: str) -> str:
    return "hidden" if name.startswith(".") else os.path.splitext(name)[1].lower() or "no ending"
