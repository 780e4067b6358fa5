"""A picture of what the student has learned: frames, teacher's saliency, target tokens and student tokens in color.

Shapes: T frames, (h,w) patch grid, T' slots, (h',w') pooled grid, C channels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchvision.io import encode_png
from typing_extensions import override

from liteframe.distill.clips import ClipBatch
from liteframe.distill.module import CTDModule
from liteframe.files import write_atomically
from liteframe.training.run_folder import RunFolder
from liteframe.training.sharded import is_sharded


class FeaturePanel(Callback):
    """Shows one clip in TensorBoard and as panel.png of the run: frames, teacher's saliency, target and student tokens.

    The clip is the first held-out one, or the first training clip where nothing is held out.

    Args:
        every_n_steps: optimizer steps between two pictures; the first comes at step 1.
    """

    def __init__(self, every_n_steps: int = 300):
        if every_n_steps < 1:
            raise ValueError(f"panel.every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._clip: ClipBatch | None = None

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: ClipBatch, batch_idx: int, *_: int
    ) -> None:
        """Keep the first held-out clip."""
        if batch_idx == 0 and batch.paths:
            self._keep(batch)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: ClipBatch, batch_idx: int
    ) -> None:
        if self._clip is None and batch.paths:
            self._keep(batch)
        step = trainer.global_step
        due = step == 1 or step % self.every_n_steps == 0
        if due and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.draw(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.draw(trainer, pl_module)

    @torch.no_grad()
    def draw(self, trainer: Trainer, module: CTDModule) -> None:
        """Write the picture of the first rank's clip, over the one before it in panel.png; every rank must call it."""
        if self._clip is None or not trainer.is_global_zero or not isinstance(trainer.logger, TensorBoardLogger):
            if is_sharded(module.student):
                module.predict_raw(module.blank_clip())  # the first rank needs this one's shards
            return
        clip = move_data_to_device(self._clip, module.device)
        # One clip has a shape of its own, not worth compiling for.
        with torch.compiler.set_stance("eager_on_recompile"), trainer.precision_plugin.forward_context():
            # A cache holds no saliency, and then there is no teacher to ask.
            pooled = module.objective.own(module.pooled_target(clip, logits=True))
            target, saliency = pooled.tokens, pooled.logits
            student = module.predict_raw(clip.video)
        weights = None if saliency is None else saliency[0]
        if not (target.isfinite().all() and student.isfinite().all()):
            return  # there are no main directions to draw, and a picture is no reason to stop
        picture = clip_panel(self._pixels(module, clip.video[0]), weights, target[0], student[0])
        name = f"frames, {'saliency, ' if weights is not None else ''}target, student"
        picture = (picture * 255).round().to(torch.uint8).cpu()
        trainer.logger.experiment.add_image(name, picture, trainer.global_step)
        write_atomically(RunFolder(trainer.default_root_dir).panel, encode_png(picture).numpy().tobytes())

    def _keep(self, batch: ClipBatch) -> None:
        targets, log_weights = (None if x is None else x[:1].clone() for x in (batch.targets, batch.log_weights))
        self._clip = ClipBatch(
            batch.video[:1].clone(), batch.frame_mask[:1].clone(), batch.paths[:1], [], batch.keys[:1], targets,
            log_weights,
        )  # fmt: skip

    @staticmethod
    def _pixels(module: CTDModule, video: Tensor) -> Tensor:
        mean, std = (torch.tensor(x, device=video.device).view(3, 1, 1) for x in (
            module.student.config.image_mean, module.student.config.image_std
        ))  # fmt: skip
        return (video * std + mean).clamp(0, 1)


def pca_colors(target: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """The three main directions of the target's tokens as red, green and blue, for both.

    [T',h',w',C] twice -> [T',3,h',w'] twice, in [0, 1]; the range is that of the target, so a student that misses it
    shows other colors.
    """
    flat = target.flatten(0, 2).double()
    mean = flat.mean(0)
    directions = torch.linalg.svd(flat - mean, full_matrices=False).Vh[:3]
    projected = (flat - mean) @ directions.T
    low, high = projected.quantile(0.02, dim=0), projected.quantile(0.98, dim=0)

    def colors(tokens: Tensor) -> Tensor:
        values = ((tokens.double() - mean) @ directions.T - low) / (high - low).clamp_min(1e-12)
        # Fewer than three directions (a single token) leave the other colors dark.
        values = F.pad(values, (0, 3 - values.shape[-1]))
        return values.clamp(0, 1).permute(0, 3, 1, 2).float()

    return colors(target), colors(student)


def clip_panel(frames: Tensor, weights: Tensor | None, target: Tensor, student: Tensor) -> Tensor:
    """One picture of four rows, one column a slot.

    Args:
        frames: [T,3,H,W] in [0, 1].
        weights: saliency of each frame's (or pair's) patches [T,h,w]; None leaves the second row out.
        target: [T',h',w',C].
        student: [T',h',w',C].

    Returns:
        [3,4*H,T'*W] in [0, 1]: first frame of each slot, its saliency (bright is high), target, student.
    """
    slots, size = target.shape[0], frames.shape[-2:]
    step = frames.shape[0] // slots
    rows = [frames[::step].float()]
    if weights is not None:
        first = weights[:: max(1, len(weights) // slots)].float()
        low, high = first.amin((1, 2), keepdim=True), first.amax((1, 2), keepdim=True)
        grey = ((first - low) / (high - low).clamp_min(1e-12))[:, None].expand(-1, 3, -1, -1)
        rows.append(F.interpolate(grey, size=size))
    rows += [F.interpolate(colors, size=size) for colors in pca_colors(target, student)]
    return torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
