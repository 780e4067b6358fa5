"""Where one training run lives, and the rule that nothing overwrites it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn

from liteframe.files import json_bytes, write_atomically
from liteframe.training.checkpoint_folder import CheckpointFolder

TRACES = ("config.yaml", "report.json", "checkpoints", "encoder", "events.out.tfevents.*")
# Written before the first step.
STARTED = ("config.yaml", "hparams.yaml", "events.out.tfevents.*")
# A folder with one of these has trained, whatever became of its checkpoints.
RESULTS = ("report.json", "encoder", "adapter")

Resume = bool | Literal["auto"]

ANOTHER_RUN = (
    "start another run from what this one has saved (--init_from RUN/encoder, --model.init_adapter RUN/adapter)"
)


class RunFolder:
    """Paths of a run: config.yaml, TensorBoard events, checkpoints/last.ckpt, encoder/, report.json."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.checkpoints = CheckpointFolder(self.path / "checkpoints")
        self.last_checkpoint = self.checkpoints.last
        self.encoder = self.path / "encoder"
        self.report = self.path / "report.json"
        self.bad_videos = self.path / "bad_videos.jsonl"
        self.panel = self.path / "panel.png"
        self.config = self.path / "config.yaml"
        self.config_changes = self.path / "config_changes.jsonl"

    def claim(self, *, resume: Resume) -> Path | None:
        """Return the checkpoint to continue from, or None for a new run.

        Args:
            resume: True continues, False starts, "auto" continues if there is a checkpoint and starts if there is none.

        Raises:
            ValueError: the folder holds a run and `resume` is off, or `resume` is on and there is nothing to continue,
                or no checkpoint is whole.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"--run {self.path} is a file; name a folder")
        if not resume:
            self._refuse(TRACES, "continue it with --resume")
            return None
        checkpoint, notes = self.checkpoints.find_whole()
        for note in notes:
            rank_zero_warn(f"--resume: {note}; continuing from {checkpoint}", stacklevel=2)
        if checkpoint is None and resume != "auto":
            raise ValueError(
                f"--resume: there is no {self.last_checkpoint}; leave out --resume to start a run "
                "(in a new folder, or after deleting this one), or use --resume auto"
            )
        if checkpoint is None:
            # A run stopped before its first step has left a configuration and events, which are written again.
            self._refuse(RESULTS, "bring its checkpoints back")
        elif not self.config.is_file():
            raise ValueError(
                f"--resume: {self.config} is missing, which says what the run does; bring it back, or {ANOTHER_RUN}"
            )
        return checkpoint

    def record_changes(self, step: int, changed: dict[str, tuple[Any, Any]]) -> None:
        """Write down which settings are others from `step` on, {name: (before, now)}; what followed it is undone."""
        drop_rows_from(self.config_changes, step)
        rows = [{"step": step, "setting": name, "from": old, "to": new} for name, (old, new) in changed.items()]
        append_rows(self.config_changes, rows)

    def changes(self) -> list[dict[str, Any]]:
        """What `record_changes` has written, by step."""
        if not self.config_changes.is_file():
            return []
        return [json.loads(line) for line in self.config_changes.read_text(encoding="utf-8").splitlines()]

    def forget(self) -> None:
        """Remove what a run that ended before its first step has written, so that it can be started again."""
        started = {path for trace in STARTED for path in self.path.glob(trace)}
        if started.union([self.bad_videos]).issuperset(self.path.glob("*")):  # else there is more to lose
            for path in started:
                path.unlink()

    def reported(self, step: int) -> bool:
        """Whether the report is of this step: it is written last."""
        return self.report.is_file() and json.loads(self.report.read_bytes()).get("steps") == step

    def clean(self) -> None:
        """Remove what killed processes have left half-written."""
        for path in [*self.path.glob(".*.tmp"), *self.encoder.glob(".*.tmp")]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self.checkpoints.clean()

    def _refuse(self, traces: tuple[str, ...], remedy: str) -> None:
        found = [trace for trace in traces if any(self.path.glob(trace))]
        if found:
            raise ValueError(
                f"--run {self.path} already holds a run ({', '.join(found)}); choose another folder, delete it, "
                f"or {remedy}"
            )


def append_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a JSONL file, whole or not at all as long as the machine stands."""
    if not rows:
        return
    data = b"".join(json_bytes(row, allow_nan=False) for row in rows)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def drop_rows_from(path: Path, step: int) -> None:
    """Forget the rows of a JSONL file that a resumed run is about to write again, from number `step` on."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        # A machine that went down may leave part of the last row.
        if line.endswith("\n") and json.loads(line)["step"] < step:
            kept.append(line)
    write_atomically(path, "".join(kept).encode())
