"""The index of a cache: sizes and digests of its files, and nothing that could name another place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from liteframe.data.cache.layout import SETTINGS, STATISTICS, Part, all_parts, part_count
from liteframe.data.cache.settings import CacheSettings, parse_object


@dataclass(frozen=True)
class Entry:
    """One shard.

    Attributes:
        clips: of the shard.
        failed: of them.
        bytes: size of the file.
        sha256: of the file.
        tables: digest of its tables, see shard.py.
    """

    clips: int
    failed: int
    bytes: int
    sha256: str
    tables: str

    @classmethod
    def parse(cls, values: Any, part: Part) -> Entry:
        """The entry of a part.

        Raises:
            ValueError: a value is missing, or of the wrong kind or size.
        """
        kinds = {"clips": int, "failed": int, "bytes": int, "sha256": str, "tables": str}
        if not isinstance(values, dict) or {name: type(value) for name, value in values.items()} != kinds:
            raise ValueError(f"the entry of {part.name} needs {', '.join(field.name for field in fields(cls))}")
        entry = cls(**values)
        if entry.clips != part.count or not 0 <= entry.failed <= entry.clips or entry.bytes < 1:
            raise ValueError(f"the entry of {part.name} does not fit: the settings give it {part.count} clips")
        return entry

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self)) + "\n"


@dataclass(frozen=True)
class Index:
    """All digests of a finished cache.

    Attributes:
        files: sha256 of settings and statistics by file name.
        entries: by the parts' names.
    """

    files: Mapping[str, str]
    entries: Mapping[str, Entry]

    def to_json(self) -> str:
        """Readable JSON."""
        entries = {name: asdict(entry) for name, entry in self.entries.items()}
        return json.dumps({"files": dict(self.files), "shards": entries}, indent=1) + "\n"

    @classmethod
    def parse(cls, text: str, settings: CacheSettings) -> Index:
        """The index of a cache with these settings.

        Raises:
            ValueError: it names other files than the settings give, or values are missing.
        """
        values = parse_object(text)
        files, shards = values.get("files"), values.get("shards")
        if not isinstance(files, dict) or set(files) != {SETTINGS, STATISTICS} or not isinstance(shards, dict):
            raise ValueError(f"it must give digests of {SETTINGS}, {STATISTICS} and the shards, and of nothing else")
        if (count := part_count(settings)) > len(shards):
            raise ValueError(f"it names {len(shards)} shards and the settings give {count}")
        parts = {part.name: part for part in all_parts(settings)}
        if set(shards) != set(parts):
            strange = sorted(set(shards) ^ set(parts))
            raise ValueError(f"it does not name the shards that the settings give: {', '.join(map(repr, strange[:5]))}")
        return cls(files, {name: Entry.parse(shards[name], part) for name, part in parts.items()})


def sha256(data: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(data).hexdigest()
