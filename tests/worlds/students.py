"""Tiny students: 24 channels, 3 blocks, 8x8 patches of 8 pixels, clips of 8 frames, four of them to a slot."""

import torch

from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.encoder import LiteFrameEncoder

TINY = {
    "dim": 24, "depth": 3, "heads": 2, "patch_size": 8, "image_size": 64, "teacher_dim": 128,
    "downsample": {1: (2, 2, 2), 2: (2, 1, 1)}, "clip_frames": 8,
}  # fmt: skip


def student_config(**changes):
    return LiteFrameConfig(**TINY | changes)


def make_student(config=None, seed=0, std=0.2):
    """A student of noise: its temporal convolutions start at zero, where they would go untested."""
    torch.manual_seed(seed)
    encoder = LiteFrameEncoder(config or student_config())
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return encoder
