"""The folder `checkpoints/`: the newest two, a manifest that names only what is whole, and how they are written.

A checkpoint `step-<n>.ckpt` is complete on the disk before manifest.json names it; `last.ckpt` is a link to the newest;
a file is removed only when the manifest has stopped naming it. So at any moment at least one named file is whole.
"""

import json
import os
import pickle
import shutil
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.utils._pytree import tree_leaves

from liteframe.files import durable_file, file_digest, fsync_path, write_json


@dataclass(frozen=True)
class NamedCheckpoint:
    """A line of the manifest.

    Attributes:
        file: name within the folder.
        step: optimizer steps done.
        bytes: size of the file.
        sha256: hexadecimal digest of the file.
    """

    file: str
    step: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        """Refuse lines that name something else than a file in the folder."""
        kinds = (isinstance(self.file, str), *(isinstance(n, int) and n >= 0 for n in (self.step, self.bytes)))
        if not all(kinds) or not isinstance(self.sha256, str) or self.file != f"step-{self.step}.ckpt":
            raise ValueError(f"{self} is not a checkpoint of this folder")


class CheckpointFolder:
    """Names, checks and clears the checkpoints of a run.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.manifest = self.path / "manifest.json"
        self.last = self.path / "last.ckpt"

    def file(self, step: int) -> Path:
        """Where the checkpoint of a step is written."""
        return self.path / f"step-{step}.ckpt"

    def named(self) -> list[NamedCheckpoint]:
        """What the manifest names, newest first; nothing without a manifest.

        Raises:
            ValueError: the manifest is damaged.
        """
        if not self.manifest.exists():
            return []
        try:
            return [NamedCheckpoint(**line) for line in json.loads(self.manifest.read_bytes())["checkpoints"]]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{self.manifest} is damaged ({error}); remove it to continue from {self.last.name} as it is"
            ) from error

    def find_whole(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that is as the manifest says, and what is wrong with each newer one.

        Returns:
            None for the path if there is no checkpoint at all.

        Raises:
            ValueError: there are checkpoints, but none is whole.
        """
        damaged: list[str] = []
        for checkpoint in self.named():
            problem = self._problem(checkpoint)
            if problem is None:
                return self.path / checkpoint.file, damaged
            damaged.append(f"{self.path / checkpoint.file} (step {checkpoint.step}) {problem}")
        if not damaged and self.last.is_file():
            if _is_whole_zip(self.last):
                return self.last, [f"{self.manifest} is missing: {self.last} cannot be checked against its digest"]
            damaged.append(f"{self.last} is not a whole archive")
        if damaged:
            raise ValueError(
                f"no checkpoint is whole: {'; '.join(damaged)}. Bring one back from a copy, or start a new run "
                "(with --init_from if an encoder was saved)"
            )
        return None, []

    def add(self, step: int, size: int, sha256: str, previous: NamedCheckpoint | None) -> NamedCheckpoint:
        """Name a checkpoint that is on the disk; keep `previous`, which is whole, and drop all others."""
        newest = NamedCheckpoint(self.file(step).name, step, size, sha256)
        kept = [newest] + ([previous] if previous and previous.file != newest.file else [])
        lines = {"checkpoints": [asdict(checkpoint) for checkpoint in kept]}
        write_json(self.manifest, lines)
        self._link(newest.file)
        names = {checkpoint.file for checkpoint in kept}
        for path in self.path.glob("step-*.ckpt"):
            if path.name not in names:
                path.unlink(missing_ok=True)
        return newest

    def clean(self) -> None:
        """Remove the temporary files of killed processes, and files that were never named."""
        names = {checkpoint.file for checkpoint in self.named()}
        # Without a manifest one of them may be what last.ckpt links to, and what the run goes on from.
        files = self.path.glob("step-*.ckpt") if self.manifest.exists() else ()
        left_over = [path for path in files if path.name not in names]
        for path in [*self.path.glob(".*.tmp"), *left_over]:
            path.unlink(missing_ok=True)

    def _problem(self, checkpoint: NamedCheckpoint) -> str | None:
        path = self.path / checkpoint.file
        if not path.is_file():
            return "is missing"
        if (size := path.stat().st_size) != checkpoint.bytes:
            return f"has {size:,} bytes instead of {checkpoint.bytes:,}"
        return None if file_digest(path) == checkpoint.sha256 else "does not have the digest it was written with"

    def _link(self, name: str) -> None:
        temporary = self.path / f".last.ckpt.{os.getpid()}.tmp"
        temporary.unlink(missing_ok=True)
        try:
            temporary.symlink_to(name)
        except OSError:  # a file system without links
            shutil.copyfile(self.path / name, temporary)
        os.replace(temporary, self.last)
        fsync_path(self.path)


def _is_whole_zip(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False


class Written(NamedTuple):
    """Size in bytes and sha256 of a file that was written."""

    bytes: int
    sha256: str


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints appear complete or not at all, and are read with `weights_only=True`.

    Lightning's own save moves a file from TMPDIR and never flushes it.

    Attributes:
        written: the file that `save_checkpoint` wrote last; its digest is taken while it is written.
    """

    written: Written

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write beside `path`, flush, rename.

        Raises:
            OSError: it cannot be written; `path` is as it was.
        """
        with durable_file(Path(path), needed=tensor_bytes(checkpoint)) as file:
            torch.save(checkpoint, file)  # type: ignore[arg-type]  # it asks for no more than write and flush
        self.written = Written(file.bytes, file.sha256)

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None, *, mmap: bool = False
    ) -> dict[str, Any]:
        """Read a checkpoint of tensors and plain values; anything else is refused, whatever `weights_only` says.

        Args:
            path: of the file.
            map_location: device of the tensors.
            weights_only: Lightning's wish; it is always so.
            mmap: leave the tensors on the disk until they are used.

        Raises:
            ValueError: the file is damaged or holds other objects.
        """
        remedy = "start a new run, with --init_from RUN/encoder if an encoder was saved"
        # torch.load would try its old format on anything else.
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is not a loadable checkpoint (no complete zip archive); {remedy}")
        try:
            return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
        except (RuntimeError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path} is not a loadable checkpoint ({reason}); {remedy}") from error


def tensor_bytes(values: Any) -> int:
    """Bytes of the tensors in nested containers; a checkpoint is hardly larger."""
    storages = {
        leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes()
        for leaf in tree_leaves(values)
        if isinstance(leaf, torch.Tensor)
    }
    return sum(storages.values())
