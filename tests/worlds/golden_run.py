"""The run behind tests/distill/golden/ctd_losses.json: 100 losses of CTD on the CPU from numbers that never change.

Weights come from numpy's RandomState, whose stream is frozen, frames from integer arithmetic, and the teacher is a
convolution of our own; everything between (manifest, stream, views, resizing, WAP, clipping, student, AdamW, schedule)
is the real road. Write the file anew, after a change that is meant to change the losses:

    OMP_NUM_THREADS=1 python tests/worlds/golden_run.py --write
"""

import argparse
import json
import platform
import tempfile
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn

from liteframe.distill import module as ctd
from liteframe.distill.clips import ClipDataset
from liteframe.distill.command import CTDCommand
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.teacher import load as teacher_settings
from liteframe.models.teacher.base import ImageTower, Teacher, TeacherFeatures

GOLDEN = Path(__file__).parents[1] / "distill" / "golden" / "ctd_losses.json"
STEPS = 100
MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.22, 0.2)
STUDENT = {
    "dim": 24, "depth": 3, "heads": 2, "mlp_dim": 48, "patch_size": 8, "image_size": 32, "teacher_dim": 16,
    "downsample": {1: [2, 2, 2], 2: [2, 1, 1]}, "clip_frames": 8,
}  # fmt: skip
SETTINGS = f"""
seed_everything: 7
run: overridden
model:
  teacher: {{name: convolution}}
  student: {STUDENT}
  target: {{statistics_clips: 8}}
  optimizer: {{lr: 2.0e-3, warmup_steps: 10}}
data: {{videos: videos.jsonl, val_fraction: 0, batch_size: 4, micro_batch_size: 2, workers: 0, min_fps: 4}}
trainer: {{max_steps: {STEPS}, accelerator: cpu, devices: 1, precision: 32-true, log_every_n_steps: 100}}
checkpoint: {{every_n_steps: 1000}}
panel: {{every_n_steps: 1000}}
"""


def noise(name, shape):
    """Standard normal numbers that depend on the name alone."""
    return torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)).float()


class Convolution(ImageTower):
    """Patches through a convolution, neighbours mixed in, a few channels far larger than the others."""

    def __init__(self):
        super().__init__()
        self.model = nn.Conv2d(3, 16, 8, stride=8)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(noise(f"teacher.{name}", parameter.shape) / 8)

    def forward_images(self, images):
        patches = torch.tanh(self.model(images)).permute(0, 2, 3, 1)
        patches = patches + patches.roll(1, dims=2).square()
        patches = patches * torch.tensor([30.0, 10.0] + 14 * [1.0], dtype=patches.dtype)
        return TeacherFeatures(patches, patches.mean(dim=(1, 2)), None)

    def vit_weights(self):
        raise ValueError("the student starts from a folder")


def teacher(name, **options):
    return Teacher(
        Convolution(), name=name, dim=16, patch_size=8, image_size=32, image_mean=MEAN, image_std=STD, resize="squash"
    )


def write_student(folder):
    """Constant starts (norms, scales, kernels) get a little noise, the others are replaced."""
    encoder = LiteFrameEncoder(LiteFrameConfig(**STUDENT, image_mean=MEAN, image_std=STD))
    matrices = {id(part.weight) for part in encoder.modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            drawn = noise(name, parameter.shape)
            if id(parameter) in matrices:
                parameter.copy_(drawn / parameter[0].numel() ** 0.5)
            elif name in ("cls_token", "pos_embed") or name.endswith("bias"):
                parameter.copy_(0.02 * drawn)
            else:
                parameter.add_(0.02 * drawn)
    encoder.save_pretrained(folder)


def frames(self, view):
    """Uint8 [T,40,48,3] by integer arithmetic, then the view's own crop and flip."""
    a, b, c, d = (1 + zlib.crc32(f"{Path(view.video).name}{part}".encode()) % 5 for part in "abcd")
    t = np.array(view.indices).reshape(-1, 1, 1, 1)
    y, x, color = (np.arange(n).reshape(shape) for n, shape in ((40, (1, -1, 1, 1)), (48, (1, 1, -1, 1)), (3, (-1,))))
    return view.cut(((a * x + b * y * (1 + color) + c * t + d * x * y // 16) % 256).astype(np.uint8))


def golden_losses():
    """Loss of each optimizer step: the mean over its two turns."""
    losses = []
    original = ctd.CTDModule.training_step

    def record(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        losses.append(loss.item())
        return loss

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        row = {"frames": 40, "fps": 8, "width": 48, "height": 40, "reader": "pyav", "breaks": [[0, 0], [40, 5]]}
        rows = [json.dumps({"video": f"{number}.mp4", **row}) + "\n" for number in range(6)]
        (folder / "videos.jsonl").write_text("".join(rows))
        (folder / "run.yaml").write_text(SETTINGS)
        write_student(folder / "student")
        with (
            mock.patch.object(teacher_settings, "load_teacher", teacher),
            mock.patch.object(ctd.CTDModule, "training_step", record),
            mock.patch.object(ClipDataset, "frames", frames),
        ):
            CTDCommand(
                ["fit", f"--config={folder / 'run.yaml'}", f"--run={folder / 'run'}",
                 f"--data.videos={folder / 'videos.jsonl'}", f"--init_from={folder / 'student'}"]
            )  # fmt: skip
    return [(first + second) / 2 for first, second in zip(losses[::2], losses[1::2], strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {GOLDEN}")
    write = parser.parse_args().write
    losses = golden_losses()
    known = json.loads(GOLDEN.read_text())["losses"] if GOLDEN.exists() else losses
    print(f"first {losses[0]:.8g}, last {losses[-1]:.8g}")
    print(f"largest relative deviation {max(abs(a / b - 1) for a, b in zip(losses, known, strict=True)):.3g}")
    if write:
        versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        rows = ",\n  ".join(f"{loss:.9g}" for loss in losses)
        text = f'{{\n "written_with": {json.dumps(versions)},\n "losses": [\n  {rows}\n ]\n}}\n'
        GOLDEN.write_text(text)


if __name__ == "__main__":
    main()
