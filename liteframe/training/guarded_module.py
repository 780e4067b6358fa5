"""The part that both training modules share: one loss a turn, and a judgement of the gradients before each step."""

import math
import sys
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from liteframe.models.student.encoder import weight_misfits
from liteframe.training.guard import (
    CAUSES,
    REMEDIES,
    WATCHED,
    GradientGuard,
    GuardSettings,
    TrainingDivergedError,
    describe,
)
from liteframe.training.replay_dump import Turn, write_dump
from liteframe.training.rng import torch_states
from liteframe.training.sharded import whole
from liteframe.training.skipped_steps import append_row, drop_rows_from, plain


class GuardedModule(LightningModule):
    """Skips steps that would harm the weights, alike on all devices; subclasses say what the loss is.

    A skipped step leaves weights, moments and weight decay alone (their gradients are None), while learning rate, step
    number and data advance. It is counted, logged as train/skipped_steps and recorded in RUN/skipped_steps.jsonl.

    Args:
        guard: when to skip and when to stop.
    """

    # Plain attributes that the loss depends on, kept in a dump.
    replayed: ClassVar[tuple[str, ...]] = ()

    def __init__(self, guard: GuardSettings):
        super().__init__()
        self.guard = GradientGuard(guard)
        self.turns: list[Turn] = []

    @abstractmethod
    def data(self) -> Any:
        """The trainer's data module; it has `tally`."""

    @abstractmethod
    def step_loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar to differentiate, and what it came from by the names in guard.WATCHED; logs nothing.

        A batch of which nothing could be read gives a loss of 0 that reaches all weights.
        """

    @abstractmethod
    def clips(self, batch: Any) -> list[dict[str, Any]]:
        """`key` (epoch, index) and `path` of each sample of a batch."""

    def finish_gradients(self, parameters: Sequence[Tensor], turns: int) -> dict[str, float]:
        """Called with the mean gradients of `turns` batches, before they are judged; returns figures to log."""
        return {}

    @abstractmethod
    def batch_from(self, fields: dict[str, Any]) -> Any:
        """A batch from its fields, after JSON has turned their tuples into lists."""

    def watched_modules(self) -> dict[str, nn.Module]:
        """Modules whose outputs a replay looks at, by name."""
        return {"": self}

    def extra_tensors(self, batch: Any) -> dict[str, Tensor]:
        """What `step_loss` needs beside the batch and the weights, for a dump."""
        return {}

    def take_extra_tensors(self, batch: Any, tensors: dict[str, Tensor]) -> None:
        """Put back what `extra_tensors` gave."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of a batch; what the guard needs to know is noted without waiting for the device."""
        self.log("data/failed_rate", self.data().tally.rate)
        rng = torch_states(self.device)
        loss, watched = self.step_loss(batch)
        with torch.no_grad():
            watched, true = {**watched, "loss": loss}, torch.ones((), dtype=torch.bool, device=loss.device)
            finite = torch.stack([watched[n].isfinite().all() if n in watched else true for n in WATCHED])
        # Batches of accumulated steps would fill the memory; should a dump want them, they are made again from keys.
        kept = batch if self.trainer.accumulate_grad_batches == 1 else None
        self.turns.append(Turn(kept, self.clips(batch), rng, loss.detach(), finite))
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Judge the gradients: clip their global norm, or drop them.

        Raises:
            TrainingDivergedError: too many steps were dropped.
        """
        turns, self.turns = self.turns, []
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        count = self.trainer.accumulate_grad_batches * self.trainer.world_size
        for name, figure in self.finish_gradients(parameters, count).items():
            self.log(name, figure)
        total = gradient_norm(parameters)
        norm = total.item()
        cause = self._cause(turns, norm)
        if cause is None and norm > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val or math.inf, total)
            self.guard.take(norm)
        else:
            # Skipped, or no clip of the step could be read: without gradients AdamW leaves weights and moments alone.
            optimizer.zero_grad(set_to_none=True)
        self.log("train/gradient_norm", norm)
        self.log("train/lr", optimizer.param_groups[0]["lr"])
        if cause is not None:
            self._skip(cause, norm, turns)
        self.log("train/skipped_steps", float(self.guard.skipped))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the guard's state."""
        checkpoint["guard"] = self.guard.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on guarding; steps after the checkpoint will be recorded again.

        Raises:
            ValueError: the trained weights do not fit this module's.
        """
        # A strategy that loads shards has taken the weights out by now, and has compared them itself.
        found = checkpoint.get("state_dict")
        if found and (problems := weight_misfits(found, self.state_dict())):
            raise ValueError(
                f"--resume: the checkpoint does not fit this model: {problems}. Restore the model settings in the "
                "run's config.yaml, or start another run with --init_from"
            )
        self.guard.load_state_dict(checkpoint["guard"])
        if self.trainer.is_global_zero:
            drop_rows_from(self._run(), checkpoint["global_step"])

    def _cause(self, turns: list[Turn], norm: float) -> str | None:
        """Why no rank may take the step, or None."""
        finite = torch.stack([turn.finite for turn in turns]).all(0)
        judged = torch.tensor([not math.isfinite(norm), self.guard.is_spike(norm)], device=self.device)
        found = self.trainer.strategy.reduce(torch.cat([~finite, judged]).float(), reduce_op="sum")
        return next((cause for cause, ranks in zip(CAUSES, found.tolist(), strict=True) if ranks), None)

    def _skip(self, cause: str, norm: float, turns: list[Turn]) -> None:
        step, rank = self.global_step, self.trainer.global_rank
        why = describe(cause, norm, self.guard)
        stop = self.guard.skip(step)
        clips = [
            {"rank": rank, "turn": number, "loss": plain(float(turn.loss)), "finite": bool(turn.finite.all()), **clip}
            for number, turn in enumerate(turns)
            for clip in turn.clips
        ]
        clips = [clip for rows in gather(clips, self.trainer.world_size) for clip in rows]
        row = {"step": step, "cause": cause, "reason": why, "norm": plain(norm), "median": plain(self.guard.median)}
        # Clips whose own loss is fine are no suspects where another's is not.
        suspects = [clip for clip in clips if not clip.pop("finite")] or clips
        if self.trainer.is_global_zero:
            append_row(self._run(), {**row, "clips": suspects})
            shown = ", ".join(Path(clip["path"]).name for clip in suspects[:3]) + ", ..." * (len(suspects) > 3)
            print(f"\nstep {step} skipped: {why} ({shown})", file=sys.stderr, flush=True)
        if stop:
            settings = self.guard.settings
            folder = write_dump(self, self._run(), {**row, "clips": clips}, turns)
            raise TrainingDivergedError(
                f"stopped at step {step}: more than {settings.max_skipped} of the last {settings.within} steps had to "
                f"be skipped, this one because {why}. {REMEDIES[cause].capitalize()}. The clips of each are in "
                f"{self._run() / 'skipped_steps.jsonl'}; the weights of the last save are in "
                f"{self._run() / 'checkpoints'}. To see where it went wrong:\n  liteframe replay {folder}"
            )

    def remade(self, turn: Turn) -> Any:
        """The batch of a turn, made again from the keys of its clips where it was not kept."""
        if turn.batch is not None:
            return turn.batch
        loader: Any = self.trainer.train_dataloader
        raw = loader.collate_fn([loader.dataset[tuple(clip["key"])] for clip in turn.clips])
        return self.data().on_after_batch_transfer(move_data_to_device(raw, self.device), 0)

    def _run(self) -> Path:
        return Path(self.trainer.default_root_dir)


def gradient_norm(parameters: Sequence[Tensor]) -> Tensor:
    """Norm of all gradients together, over all shards."""
    return whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


def gather(rows: list[dict[str, Any]], world_size: int) -> list[list[dict[str, Any]]]:
    """Everyone's rows, by rank."""
    if world_size == 1:
        return [rows]
    everyone: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(everyone, rows)
    return everyone
