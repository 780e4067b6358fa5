"""Where one training run lives, and the rule that nothing overwrites it."""

import json
import os
from pathlib import Path
from typing import Any

TRACES = ("config.yaml", "report.json", "checkpoints", "encoder", "events.out.tfevents.*")


class RunFolder:
    """Paths of a run: config.yaml, TensorBoard events, checkpoints/last.ckpt, encoder/, report.json."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.last_checkpoint = self.path / "checkpoints" / "last.ckpt"
        self.encoder = self.path / "encoder"
        self.report = self.path / "report.json"
        self.bad_videos = self.path / "bad_videos.jsonl"

    def claim(self, *, resume: bool) -> Path | None:
        """Return the checkpoint to continue from, or None for a new run.

        Raises:
            ValueError: the folder holds a run and `resume` is off, or `resume` is on and there is nothing to continue.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"--run {self.path} is a file; name a folder")
        traces = [trace for trace in TRACES if any(self.path.glob(trace))]
        if not resume:
            if traces:
                raise ValueError(
                    f"--run {self.path} already holds a run ({', '.join(traces)}); "
                    "choose another folder, delete it, or continue it with --resume"
                )
            return None
        if not self.last_checkpoint.is_file():
            raise ValueError(
                f"--resume: there is no {self.last_checkpoint}; leave out --resume to start a run "
                "(in a new folder, or after deleting this one)"
            )
        return self.last_checkpoint


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under a temporary name in its own folder, flush it to the disk, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write readable JSON atomically."""
    write_atomically(path, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())
