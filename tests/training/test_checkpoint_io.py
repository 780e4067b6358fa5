import os
import tempfile

import pytest
import torch

from liteframe.training.checkpoint import LastCheckpoint
from liteframe.training.checkpoint_folder import AtomicCheckpointIO


def test_temporary_file_lies_beside_the_target(tmp_path, monkeypatch):
    """TMPDIR on another file system is where a copying save gets torn."""
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    seen = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append((a, b)), replace(a, b)))
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": torch.ones(3)}, path)
    assert os.path.dirname(seen[0][0]) == str(path.parent)
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(path)["a"], torch.ones(3))
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_failed_save_keeps_the_previous_one(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"a": 1}, path)

    def torn(checkpoint, file):
        file.write(b"half a check")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="no space"):
        io.save_checkpoint({"a": 2}, path)
    assert io.load_checkpoint(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


class Malice:
    def __reduce__(self):
        return (os.mkdir, ("/tmp/liteframe-unpickled",))


@pytest.mark.parametrize("content", ["truncated", "text", "object", "empty"])
def test_damaged_or_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "last.ckpt"
    torch.save({"a": torch.ones(1000)}, path)
    if content == "object":
        torch.save({"a": Malice()}, path)
    else:
        path.write_bytes({"truncated": path.read_bytes()[:900], "text": b"hello", "empty": b""}[content])
    with pytest.raises(ValueError, match=r"last\.ckpt is not a loadable checkpoint.*--init_from"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not os.path.exists("/tmp/liteframe-unpickled")


def test_interval_is_checked():
    with pytest.raises(ValueError, match=r"checkpoint\.every_n_steps"):
        LastCheckpoint(every_n_steps=0)
