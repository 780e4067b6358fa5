"""Where a manifest may point: paths that stay below its folder once links are followed."""

from __future__ import annotations

import os
import re
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
    if os.path.isabs(value):
        return os.path.normpath(value)
    if (path := inside.path(value)) is None:
        raise ValueError(f"{what}: {value!r} leaves {inside.folder}; write its absolute path if you mean it")
    return path
