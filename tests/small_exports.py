"""Small random exports of both families, for checks of runtimes that serve them."""

from pathlib import Path

import torch
from liteframe_export.hf_vlm import save_vlm
from vlm_world import make_internvl, make_llava_onevision

from liteframe.load_vlm import load_video_llm
from liteframe.models.student import LiteFrameEncoder
from liteframe.models.student_config import LiteFrameConfig

# family -> maker of the Video LLM, and what its tower demands of the encoder
FAMILIES = {
    "internvl": (make_internvl, {"image_size": 64, "teacher_dim": 128}),
    "llava_onevision": (
        make_llava_onevision,
        {"image_size": 80, "teacher_dim": 32, "image_mean": (0.5,) * 3, "image_std": (0.5,) * 3},
    ),
}


def make_export(family: str, place: Path) -> Path:
    """What `liteframe export hf-vlm` writes, without card and comparison; returns its folder."""
    make, demands = FAMILIES[family]
    vlm = make(place / "vlm")
    torch.manual_seed(1)
    encoder = LiteFrameEncoder(
        LiteFrameConfig(
            dim=24, depth=3, heads=2, patch_size=8, downsample={1: (2, 2, 2), 2: (2, 1, 1)}, clip_frames=8, **demands
        )
    )
    for parameter in encoder.parameters():  # the temporal convolutions start at zero, where they would go untested
        torch.nn.init.normal_(parameter, std=0.2)
    model, processor = load_video_llm(vlm, encoder=encoder)
    if family == "llava_onevision":
        torch.nn.init.normal_(model.model.image_newline)
    folder = place / "exported"
    folder.mkdir()
    save_vlm(model, processor, folder)
    return folder
