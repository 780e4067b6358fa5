"""One shard: a safetensors file of clips of fixed size, with a digest of every clip.

Tensors of a shard of N clips, M of which could be read:

    target [M,T',h,w,C], scale [M,...]   as the codec wants them
    row     int32 [N]      place of clip n among the M; -1 where the video failed
    text    uint8, text_end int64 [N]    JSON of each clip: its view, or its failure
    jpeg    uint8, jpeg_end int64 [M,T]  frames, where the cache has them
    sha256  uint8 [N,32]   over all bytes of a clip

The index of the cache holds a digest over `row`, `text_end`, `jpeg_end` and `sha256` ("tables"), so that every byte a
reader uses is checked against the index, without reading the rest of the shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from liteframe.distill.cache.codec import STORED, scale_shape
from liteframe.distill.cache.settings import CacheSettings

TABLES = ("row", "text_end", "jpeg_end", "sha256")


@dataclass(frozen=True)
class Record:
    """One clip as it is stored.

    Attributes:
        facts: {"view": ...} or {"failure": ...}, as JSON has them.
        encoded: what the codec made of the target; empty where the video failed.
        jpeg: a file for each frame; empty where the cache holds no frames.
    """

    facts: Mapping[str, Any]
    encoded: Mapping[str, Tensor]
    jpeg: Sequence[bytes] = ()

    @property
    def failed(self) -> bool:
        """Whether the video could not be read."""
        return "failure" in self.facts


def pack_shard(records: Sequence[Record], settings: CacheSettings) -> tuple[bytes, str]:
    """The bytes of a shard's file, and the digest of its tables."""
    texts = [json.dumps(record.facts, ensure_ascii=False).encode() for record in records]
    good = [record for record in records if not record.failed]
    shape, scale = settings.target_shape, scale_shape(settings.codec, settings.target_shape)
    tensors = {
        "target": _stacked([record.encoded["target"] for record in good], shape, STORED[settings.codec]),
        "row": torch.tensor([-1 if r.failed else i for r, i in _numbered(records)], dtype=torch.int32),
        "text": _bytes(b"".join(texts)),
        "text_end": torch.tensor(np.cumsum([len(text) for text in texts]), dtype=torch.int64),
        "sha256": torch.stack(
            [_bytes(_digest(text, r.encoded, r.jpeg)) for text, r in zip(texts, records, strict=True)]
        ),
    }
    if scale is not None:
        tensors["scale"] = _stacked([record.encoded["scale"] for record in good], scale, torch.float32)
    if settings.jpeg_quality is not None:
        files = [file for record in good for file in record.jpeg]
        tensors["jpeg"] = _bytes(b"".join(files))
        ends = np.cumsum([len(file) for file in files], dtype=np.int64).reshape(len(good), settings.clip_frames)
        tensors["jpeg_end"] = torch.from_numpy(ends)
    return save(tensors), _tables_digest({name: tensors[name] for name in TABLES if name in tensors})


class Shard:
    """An open shard. Clips are read from the mapped file; nothing but the header stays in memory.

    Args:
        path: the file.
        settings: of the cache.
        clips: N.
        tables: the digest of its tables, from the index.

    Raises:
        ValueError: it is not the shard that the index names.
    """

    def __init__(self, path: Path, settings: CacheSettings, clips: int, tables: str):
        self.settings = settings
        wanted = [name for name in TABLES if name != "jpeg_end" or settings.jpeg_quality is not None]
        try:
            self._file = safe_open(path, "pt")
            found = {name: self._file.get_tensor(name) for name in wanted}
        except SafetensorError as error:
            raise ValueError(f"it is not a shard of a target cache ({error})") from error
        if _tables_digest(found) != tables or len(found["row"]) != clips:
            raise ValueError("its tables do not have the digest that the index names")
        # A few dozen kilobytes.
        self._tables = {name: tensor.numpy() for name, tensor in found.items()}

    def read(self, number: int) -> Record:
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
        return Record(json.loads(text), encoded, jpeg)

    def _payload(self, row: int) -> tuple[dict[str, Tensor], list[bytes]]:
        codec, shape = self.settings.codec, self.settings.target_shape
        encoded = {"target": self._row("target", row, shape, STORED[codec])}
        scale = scale_shape(codec, shape)
        if scale is not None:
            encoded["scale"] = self._row("scale", row, scale, torch.float32)
        if self.settings.jpeg_quality is None:
            return encoded, []
        frames = self.settings.clip_frames
        ends = self._tables["jpeg_end"].reshape(-1)
        return encoded, [self._span("jpeg", ends, row * frames + i) for i in range(frames)]

    def _row(self, name: str, row: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        tensor = self._file.get_slice(name)[row : row + 1][0]
        if tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype:
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}, expected {dtype} {list(shape)}")
        return tensor

    def _span(self, name: str, ends: np.ndarray, number: int) -> bytes:
        first, last = (int(ends[number - 1]) if number else 0), int(ends[number])
        return self._file.get_slice(name)[first:last].numpy().tobytes()


def _numbered(records: Sequence[Record]) -> list[tuple[Record, int]]:
    """Each record with the number of good ones before it."""
    good = np.cumsum([0, *(not record.failed for record in records)])
    return [(record, int(good[i])) for i, record in enumerate(records)]


def _stacked(tensors: Sequence[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.stack(list(tensors)) if tensors else torch.empty((0, *shape), dtype=dtype)


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
