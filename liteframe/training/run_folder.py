"""Where one training run lives, and the rule that nothing overwrites it."""

import json
import os
import shutil
from pathlib import Path
from typing import Literal

from lightning.pytorch.utilities import rank_zero_warn

from liteframe.training.checkpoint_folder import CheckpointFolder

TRACES = ("config.yaml", "report.json", "checkpoints", "encoder", "events.out.tfevents.*")
# Written before the first step.
STARTED = ("config.yaml", "hparams.yaml", "events.out.tfevents.*")
# A folder with one of these has trained, whatever became of its checkpoints.
RESULTS = ("report.json", "encoder", "adapter")

Resume = bool | Literal["auto"]


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
        return checkpoint

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
