"""Small random exports of each family, for checks of runtimes that serve them, and a quick way to load exports anew."""

import contextlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from liteframe_export import verify
from liteframe_export.hf_vlm import save_vlm

from liteframe.models.vlm.load import load_video_llm
from worlds import forked
from worlds.students import make_student, student_config
from worlds.vlms import make_internvl, make_llava_onevision, make_qwen2_5_vl, make_qwen3_5, make_qwen3_vl

HALVES = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
CLIP = {"image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711)}
# family -> maker of the Video LLM, and what its tower demands of the encoder
FAMILIES = {
    "internvl": (make_internvl, {"image_size": 64, "teacher_dim": 128}),
    "llava_onevision": (make_llava_onevision, {"image_size": 80, "teacher_dim": 32, **HALVES}),
    "qwen2_5_vl": (make_qwen2_5_vl, {"image_size": 64, "teacher_dim": 32, **CLIP}),
    "qwen3_vl": (make_qwen3_vl, {"image_size": 64, "teacher_dim": 32, **HALVES}),
    "qwen3_5": (make_qwen3_5, {"image_size": 64, "teacher_dim": 32, **HALVES}),
}


def make_export(family: str, place: Path) -> Path:
    """What `liteframe export hf-vlm` writes, without card and comparison; returns its folder."""
    make, demands = FAMILIES[family]
    vlm = make(place / "vlm")
    encoder = make_student(student_config(**demands), seed=1)
    model, processor = load_video_llm(vlm, encoder=encoder)
    if family == "llava_onevision":
        torch.nn.init.normal_(model.model.image_newline)
    folder = place / "exported"
    folder.mkdir()
    save_vlm(model, processor, folder)
    return folder


@contextlib.contextmanager
def reloading_in_forks():
    """Within, an export proves itself in a fork of a process that has imported transformers, and never liteframe.

    It does so in a new Python in tests/export/test_exports.py and tests/cli/test_readme.py.
    """

    def run(command, *, cwd, env, **_):
        return forked.run(command, level="libraries", cwd=cwd, env=env)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "subprocess", SimpleNamespace(run=run))
        yield
