"""How checkpoints reach the disk and come back. Lightning's own save moves a file from TMPDIR and never flushes it."""

import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.utils._pytree import tree_leaves

from liteframe.files import durable_file


class Written(NamedTuple):
    """Size in bytes and sha256 of a file that was written."""

    bytes: int
    sha256: str


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints appear complete or not at all, and are read with `weights_only=True`.

    Attributes:
        written: the latest file; its digest is taken while it is written.
    """

    written: Written | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write beside `path`, flush, rename.

        Raises:
            OSError: it cannot be written; `path` is as it was.
        """
        with durable_file(Path(path), needed=tensor_bytes(checkpoint)) as file:
            torch.save(checkpoint, file)  # type: ignore[arg-type]  # it asks for no more than write and flush
        self.written = Written(file.bytes, file.sha256)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint of tensors and plain values; anything else is refused, whatever `weights_only` says.

        Raises:
            ValueError: the file is damaged or holds other objects.
        """
        remedy = "start a new run, with --init_from RUN/encoder if an encoder was saved"
        # torch.load would try its old format on anything else.
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is not a loadable checkpoint (no complete zip archive); {remedy}")
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
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
