"""One shard: a safetensors file of clips, with a digest of every clip.

Tensors of a shard of N clips, M of which could be read:

    features [tokens,C], ...    of all clips, under the names that the settings give; a clip's are T'*h*w tokens
    token_end int64 [M]
    row     int32 [N]      place of clip n among the M; -1 where the video failed
    text    uint8, text_end int64 [N]    JSON of each clip: which it is, or its failure
    jpeg    uint8, jpeg_end int64 [M,T]  frames, where the cache has them
    sha256  uint8 [N,32]   over all bytes of a clip

The index of the cache holds a digest over `row`, `token_end`, `text_end`, `jpeg_end` and `sha256` ("tables"), so that
every byte a reader uses is checked against the index, without reading the rest of the shard.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from liteframe.files import json_bytes
from liteframe.training.cache.settings import Settings, ShardKey

TABLES = ("row", "token_end", "text_end", "jpeg_end", "sha256")
# safetensors' own names of the types.
DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.int8: "I8"}


@dataclass(frozen=True)
class StoredClip:
    """One clip as it is stored.

    Attributes:
        facts: which clip it is, or {"failure": ...}, as JSON has them.
        encoded: its features [T',h,w,C] and what belongs to them; empty where the video failed.
        jpeg: a file for each frame; empty where the cache holds no frames.
    """

    facts: Mapping[str, Any]
    encoded: Mapping[str, Tensor]
    jpeg: Sequence[bytes] = ()

    @property
    def failed(self) -> bool:
        """Whether the video could not be read."""
        return "failure" in self.facts


@dataclass(frozen=True)
class ShardInfo:
    """What the index says of a shard.

    Attributes:
        clips: of the shard.
        failed: of them.
        bytes: size of the file.
        tables: digest of its tables, which hold a digest of each clip.
    """

    clips: int
    failed: int
    bytes: int
    tables: str

    @classmethod
    def parse(cls, values: Any, key: ShardKey) -> ShardInfo:
        """What an index says of the shard `key`.

        Raises:
            ValueError: a value is missing, or of the wrong kind or size.
        """
        kinds = {"clips": int, "failed": int, "bytes": int, "tables": str}
        if not isinstance(values, dict) or {name: type(value) for name, value in values.items()} != kinds:
            raise ValueError(f"the entry of {key.name} needs {', '.join(field.name for field in fields(cls))}")
        info = cls(**values)
        if info.clips != key.count or not 0 <= info.failed <= info.clips or info.bytes < 1:
            raise ValueError(f"the entry of {key.name} does not fit: the settings give it {key.count} clips")
        return info


def pack_shard(clips: Sequence[StoredClip], settings: Settings) -> bytes:
    """A shard's safetensors file in memory: clips of one view, in the order of the videos."""
    texts = [json_bytes(clip.facts).removesuffix(b"\n") for clip in clips]
    good = [clip for clip in clips if not clip.failed]
    failed = np.array([clip.failed for clip in clips])
    digests = [_digest(text, clip.encoded, clip.jpeg) for text, clip in zip(texts, clips, strict=True)]
    kinds = settings.payload
    features = next(iter(kinds))
    tensors = {
        name: torch.cat([clip.encoded[name].flatten(0, 2) for clip in good] or [torch.empty((0, *rest), dtype=dtype)])
        for name, (rest, dtype) in kinds.items()
    }
    tensors |= {
        "row": torch.from_numpy(np.where(failed, -1, np.cumsum(~failed) - 1).astype(np.int32)),
        "token_end": torch.tensor(
            np.cumsum([math.prod(clip.encoded[features].shape[:3]) for clip in good]), dtype=torch.int64
        ),
        "text": _bytes(b"".join(texts)),
        "text_end": torch.tensor(np.cumsum([len(text) for text in texts]), dtype=torch.int64),
        "sha256": torch.stack([_bytes(digest) for digest in digests]),
    }
    if settings.stored_frames:
        files = [file for clip in good for file in clip.jpeg]
        tensors["jpeg"] = _bytes(b"".join(files))
        ends = np.cumsum([len(file) for file in files], dtype=np.int64).reshape(len(good), settings.stored_frames)
        tensors["jpeg_end"] = torch.from_numpy(ends)
    return save(tensors)


class Shard:
    """An open shard. Clips are read from the mapped file; nothing but the header and the tables stays in memory.

    Args:
        path: the file.
        key: which clips it must hold.
        settings: of the cache.

    Raises:
        ValueError: it is not a whole shard of so many clips of a cache with these settings.
        OSError: there is no such file.
    """

    def __init__(self, path: Path, key: ShardKey, settings: Settings):
        self.settings = settings
        names = [name for name in TABLES if name != "jpeg_end" or settings.stored_frames]
        try:
            self._file = safe_open(path, "pt")
            tables = {name: self._file.get_tensor(name) for name in names}
            if len(tables["token_end"]) != int((tables["row"] >= 0).sum()):
                raise ValueError("its tables name other clips with features than could be read")
            self._check_payload(int(tables["token_end"][-1]) if len(tables["token_end"]) else 0)
        except SafetensorError as error:
            raise ValueError(f"it is not a shard of a {settings.kind} ({error})") from error
        if len(tables["row"]) != key.count:
            raise ValueError(f"it holds {len(tables['row'])} clips, not the {key.count} that the settings give it")
        # A few dozen kilobytes.
        self._tables = {name: tensor.numpy() for name, tensor in tables.items()}
        failed = int((tables["row"] < 0).sum())
        self.info = ShardInfo(key.count, failed, path.stat().st_size, _tables_digest(tables))

    def read(self, number: int) -> StoredClip:
        """Clip `number`, checked against its digest.

        Raises:
            ValueError: its bytes are not those that were written.
        """
        row = int(self._tables["row"][number])
        try:
            text = self._span("text", self._tables["text_end"], number)
            encoded, jpeg = ({}, []) if row < 0 else self._payload(row)
        except SafetensorError as error:
            raise ValueError(f"clip {number} cannot be read ({error})") from error
        if _digest(text, encoded, jpeg) != self._tables["sha256"][number].tobytes():
            raise ValueError(f"clip {number} does not have the digest that it was written with")
        facts = json.loads(text)
        if encoded:
            grid, tokens = self.settings.grid(facts), len(next(iter(encoded.values())))
            if math.prod(grid) != tokens:
                raise ValueError(f"clip {number} has {tokens} tokens, and its size makes {math.prod(grid)}")
            encoded = {name: tensor.unflatten(0, grid) for name, tensor in encoded.items()}
        return StoredClip(facts, encoded, jpeg)

    def _check_payload(self, tokens: int) -> None:
        for name, (rest, dtype) in self.settings.payload.items():
            tensor = self._file.get_slice(name)
            if (tensor.get_shape(), tensor.get_dtype()) != ([tokens, *rest], DTYPES[dtype]):
                raise ValueError(
                    f"{name} is {tensor.get_dtype()} {tensor.get_shape()}, expected {DTYPES[dtype]} {[tokens, *rest]}"
                )

    def _payload(self, row: int) -> tuple[dict[str, Tensor], list[bytes]]:
        ends = self._tables["token_end"]
        first, last = (int(ends[row - 1]) if row else 0), int(ends[row])
        encoded = {name: self._file.get_slice(name)[first:last] for name in self.settings.payload}
        if not self.settings.stored_frames:
            return encoded, []
        frames, ends = self.settings.stored_frames, self._tables["jpeg_end"].reshape(-1)
        return encoded, [self._span("jpeg", ends, row * frames + i) for i in range(frames)]

    def _span(self, name: str, ends: np.ndarray, number: int) -> bytes:
        first, last = (int(ends[number - 1]) if number else 0), int(ends[number])
        return self._file.get_slice(name)[first:last].numpy().tobytes()


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _raw(tensor: Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def _digest(text: bytes, encoded: Mapping[str, Tensor], jpeg: Sequence[bytes]) -> bytes:
    digest = hashlib.sha256(text)
    for name in sorted(encoded):
        digest.update(_raw(encoded[name]))
    for file in jpeg:
        digest.update(file)
    return digest.digest()


def _tables_digest(tables: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tables):
        digest.update(f"{name} {tables[name].dtype} {list(tables[name].shape)}\n".encode())
        digest.update(_raw(tables[name]))
    return digest.hexdigest()
