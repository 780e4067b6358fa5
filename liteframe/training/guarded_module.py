"""What both training modules share: one loss a micro-batch, and a judgement of the gradients before each step."""

import json
import math
import os
import shutil
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import LightningModule
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import override

from liteframe.files import fsync_path, write_json
from liteframe.models.student.io import weight_misfits
from liteframe.training.guard import (
    CAUSES,
    REMEDIES,
    SKIPPED_STEPS,
    WATCHED,
    GradientGuard,
    GuardSettings,
    TrainingDivergedError,
    describe,
    json_number,
)
from liteframe.training.report import tell
from liteframe.training.resume import refuse_other_contents
from liteframe.training.run_folder import append_rows, drop_rows_from
from liteframe.training.schedule import go_on
from liteframe.training.sharded import full_state_dict, full_tensor


@dataclass
class MicroBatch:
    """One batch of the step under way; a step has several where gradients are accumulated.

    Attributes:
        batch: what the loss came from, or None where it was not kept.
        clips: rows of key and path.
        loss: what was differentiated.
        finite: bool [4], by the names in guard.WATCHED.
    """

    batch: Any
    clips: list[dict[str, Any]]
    loss: Tensor
    finite: Tensor


class GuardedModule(LightningModule):
    """Skips steps that would harm the weights, alike on all devices; subclasses say what the loss is.

    A skipped step leaves weights, moments and weight decay alone (their gradients are None), while learning rate, step
    number and data advance. It is counted, logged as train/skipped_steps and recorded in RUN/skipped_steps.jsonl.

    Args:
        guard: when to skip and when to stop.
    """

    def __init__(self, guard: GuardSettings):
        super().__init__()
        self.guard = GradientGuard(guard)
        self.micro_batches: list[MicroBatch] = []
        # Digests of what settings name, by the settings' names: a resumed run goes on with the same.
        self.contents: dict[str, str | None] = {}
        self.resumed = False

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

    def finish_gradients(self, parameters: Sequence[Tensor], micro_batches: int) -> dict[str, float]:
        """Called with the mean gradients of so many batches, before they are judged; returns figures to log."""
        return {}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of a batch; what the guard needs to know is noted without waiting for the device."""
        # A number would be copied to the device, and the host would wait; a tensor stays where it is.
        self.log("data/failed_rate", torch.tensor(self.data().tally.rate))
        loss, watched = self.step_loss(batch)
        with torch.no_grad():
            watched, true = {**watched, "loss": loss}, torch.ones((), dtype=torch.bool, device=loss.device)
            finite = torch.stack([all_finite(watched[n]) if n in watched else true for n in WATCHED])
        # Batches of accumulated steps would fill the memory; should a dump want them, they are decoded again.
        kept = batch if self.trainer.accumulate_grad_batches == 1 else None
        self.micro_batches.append(MicroBatch(kept, self.clips(batch), loss.detach(), finite))
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
        micro_batches, self.micro_batches = self.micro_batches, []
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        count = self.trainer.accumulate_grad_batches * self.trainer.world_size
        for name, figure in self.finish_gradients(parameters, count).items():
            self.log(name, figure)
        total = gradient_norm(parameters)
        norm = total.item()
        cause = self._cause(micro_batches, norm)
        if cause is None and norm > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val or math.inf, total)
            self.guard.take(norm)
        else:
            # Skipped, or no clip of the step could be read: without gradients weights and moments are left alone.
            optimizer.zero_grad(set_to_none=True)
        self.log("train/gradient_norm", norm)
        self.log("train/lr", optimizer.param_groups[0]["lr"])
        if cause is not None:
            self._skip(cause, norm, micro_batches)
        self.log("train/skipped_steps", float(self.guard.skipped))

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["guard"] = self.guard.state_dict()
        checkpoint["contents"] = self.contents

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on guarding; steps after the checkpoint will be recorded again.

        Raises:
            ValueError: the trained weights do not fit this module's, or frozen ones are not those of before.
        """
        refuse_other_contents(checkpoint["contents"], self.contents)
        # A strategy that loads shards has taken the weights out by now, and has compared them itself.
        weights = checkpoint.get("state_dict")
        if weights and (problems := weight_misfits(weights, self.state_dict())):
            raise ValueError(
                f"--resume: the checkpoint does not fit this model: {problems}. Restore the model settings in the "
                "run's config.yaml, or start another run with --init_from"
            )
        self.resumed = True
        self.guard.load_state_dict(checkpoint["guard"])
        if self.trainer.is_global_zero:
            drop_rows_from(self._run() / SKIPPED_STEPS, checkpoint["global_step"])

    @override
    def on_train_start(self) -> None:
        """Let a resumed optimizer do what is asked of it now; the checkpoint has brought back what it did before."""
        if self.resumed:
            go_on(self.trainer.optimizers[0], self.lr_schedulers(), self.configure_optimizers())  # type: ignore[arg-type]

    def _cause(self, micro_batches: list[MicroBatch], norm: float) -> str | None:
        """Why no rank may take the step, or None."""
        finite = torch.stack([micro_batch.finite for micro_batch in micro_batches]).all(0)
        judged = torch.tensor([not math.isfinite(norm), self.guard.is_spike(norm)], device=self.device)
        ranks = self.trainer.strategy.reduce(torch.cat([~finite, judged]).float(), reduce_op="sum")
        return next((cause for cause, count in zip(CAUSES, ranks.tolist(), strict=True) if count), None)

    def _skip(self, cause: str, norm: float, micro_batches: list[MicroBatch]) -> None:
        step, rank = self.global_step, self.trainer.global_rank
        why = describe(cause, norm, self.guard)
        stop = self.guard.skip(step)
        clips = [
            {
                "rank": rank,
                "micro_batch": number,
                "loss": json_number(float(micro_batch.loss)),
                "finite": bool(micro_batch.finite.all()),
                **clip,
            }
            for number, micro_batch in enumerate(micro_batches)
            for clip in micro_batch.clips
        ]
        clips = [clip for rows in gather(clips, self.trainer.world_size) for clip in rows]
        row = {
            "step": step,
            "cause": cause,
            "reason": why,
            "norm": json_number(norm),
            "median": json_number(self.guard.median),
        }
        # Clips whose own loss is fine are no suspects where another's is not.
        suspects = [clip for clip in clips if not clip.pop("finite")] or clips
        if self.trainer.is_global_zero:
            append_rows(self._run() / SKIPPED_STEPS, [{**row, "clips": suspects}])
            names = ", ".join(Path(clip["path"]).name for clip in suspects[:3]) + ", ..." * (len(suspects) > 3)
            tell(f"\nstep {step} skipped: {why} ({names})")
        if stop:
            settings = self.guard.settings
            folder = self._write_dump({**row, "clips": clips}, micro_batches)
            raise TrainingDivergedError(
                f"stopped at step {step}: more than {settings.max_skipped} of the last {settings.within} steps had to "
                f"be skipped, this one because {why}. {REMEDIES[cause].capitalize()}. The clips of each are in "
                f"{self._run() / SKIPPED_STEPS}; the weights of the last save are in "
                f"{self._run() / 'checkpoints'}. Batches and weights of this step are in {folder}; "
                "docs/loss_spikes.md shows how to load them"
            )

    def _write_dump(self, row: dict[str, Any], micro_batches: list[MicroBatch]) -> Path:
        """Write RUN/dumps/step_<number>, whole or not at all, in safetensors and JSON; all ranks call it."""
        folder = self._run() / "dumps" / f"step_{row['step']:06d}"
        temporary = folder.with_name(f".{folder.name}.tmp")
        if self.trainer.is_global_zero:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.trainer.strategy.barrier()
        tensors, others = {}, []
        for number, micro_batch in enumerate(micro_batches):
            fields = self._batch_of(micro_batch)._asdict()
            others.append({name: value for name, value in fields.items() if not isinstance(value, Tensor)})
            for name, value in fields.items():
                if isinstance(value, Tensor):
                    tensors[f"{number}.{name}"] = value.detach().cpu().contiguous().clone()
        (temporary / f"batch_{self.global_rank}.json").write_text(json.dumps(others))
        save_file(tensors, temporary / f"batch_{self.global_rank}.safetensors")
        # All ranks hold a part of each where weights are sharded.
        weights = full_state_dict(self)
        self.trainer.strategy.barrier()
        if self.trainer.is_global_zero:
            save_file(weights, temporary / "weights.safetensors")
            shutil.copyfile(self._run() / "config.yaml", temporary / "config.yaml")
            write_json(temporary / "state.json", {**row, "precision": str(self.trainer.precision)})
            for path in temporary.iterdir():
                fsync_path(path)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
            fsync_path(folder.parent)
        self.trainer.strategy.barrier()
        return folder

    def _batch_of(self, micro_batch: MicroBatch) -> Any:
        """The batch itself, decoded again from the keys of its clips where it was not kept."""
        if micro_batch.batch is not None:
            return micro_batch.batch
        loader: Any = self.trainer.train_dataloader
        raw = loader.collate_fn([loader.dataset[tuple(clip["key"])] for clip in micro_batch.clips])
        return self.data().on_after_batch_transfer(move_data_to_device(raw, self.device), 0)

    def _run(self) -> Path:
        return Path(self.trainer.default_root_dir)


def all_finite(tensor: Tensor) -> Tensor:
    """Whether no value is NaN or infinite: a bool scalar, from one pass that writes nothing (isfinite takes five)."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return torch.ones((), dtype=torch.bool, device=tensor.device)
    low, high = tensor.aminmax()  # NaN if there is one
    return low.isfinite() & high.isfinite()


def gradient_norm(parameters: Sequence[Tensor]) -> Tensor:
    """Norm of all gradients together, over all shards."""
    return full_tensor(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


def gather(rows: list[dict[str, Any]], world_size: int) -> list[list[dict[str, Any]]]:
    """Rows of all ranks, the n-th list from rank n; all ranks must call it."""
    if world_size == 1:
        return [rows]
    everyone: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(everyone, rows)
    return everyone
