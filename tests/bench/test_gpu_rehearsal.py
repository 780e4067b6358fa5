"""benchmarks/gpu.py on a CPU: it runs with no more than it says, and neither times nor passes what is wrong."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from liteframe_export.hf_encoder import exported_encoder
from torch import nn
from worlds import ROOT
from worlds.students import make_student, student_config

from liteframe.bench.encoder import PYTORCH, Encoder, Setup, encoder_rows
from liteframe.bench.steps import CtdStep, check_step
from liteframe.models.teacher.load import load_teacher

CPU = torch.device("cpu")
# What a borrowed machine need not have; None in sys.modules is a module that cannot be found.
HIDDEN = ("av", "decord", "peft", "jsonargparse", "lightning", "lightning_fabric", "pytorch_lightning", "tensorboard",
          "matplotlib", "torchcodec", "onnx", "onnxruntime")  # fmt: skip
HIDE = (
    "import runpy, sys; sys.modules.update(dict.fromkeys({hidden!r})); runpy.run_path({script!r}, run_name='__main__')"
)


def test_rehearsal(tmp_path):
    program = HIDE.format(hidden=HIDDEN, script=str(ROOT / "benchmarks/gpu.py"))
    words = [sys.executable, "-c", program, "--small", "--minutes", "5", "--out", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "gpu.json").read_text())
    parts = record["parts"]
    assert list(parts) == [
        "kernels are right", "student is right", "CTD step is right", "LMA step is right", "rates", "kernels",
        "encoders", "CTD step", "latency", "student by part",
    ]  # fmt: skip
    assert {part["status"] for part in parts.values()} == {"ok"}
    assert {row["status"] for row in parts["kernels are right"]["rows"]} == {"not measured on a GPU"}
    assert {row["trained"] for row in parts["LMA step is right"]["rows"]} == {
        "projector, encoder: peft is not installed"
    }
    assert {row["compared"] for row in parts["CTD step is right"]["rows"]} == {4 * 16 + 2 * 2 + 6 + 1}
    encoders = {(row["encoder"], row["variant"]): row for row in parts["encoders"]["rows"]}
    for form in (("student", "eager"), ("student, inference form", "eager"), ("student, exported", "as it is")):
        assert encoders[form]["median_ms"] > 0
        assert encoders[form]["error"] < 0.02
    right = {(row["variant"], row["dtype"]): row["error"] for row in parts["student is right"]["rows"]}
    assert len(right) == 8
    assert right["inference form", "float32"] < 1e-5
    assert encoders["student", "kernels"]["status"] == "not measured on a GPU"
    assert {row["targets"] for row in parts["CTD step"]["rows"]} == {"live", "cached"}
    assert {row["system"] for row in parts["latency"]["rows"]} == {"teacher VLM", "teacher + WAP", "LiteFrame"}
    assert "not measured on a GPU" in (tmp_path / "gpu.md").read_text()
    assert not record["machine"]["measured_on_gpu"]


@pytest.fixture
def step():
    torch.manual_seed(0)
    small = {"img_size": 64, "embed_dim": 128, "depth": 1, "num_heads": 2, "patch_size": 8}
    teacher = load_teacher("timm/vit_intern300m_patch14_448", pretrained=False, **small)
    video = torch.randn(2, 8, 3, 64, 64)
    return CtdStep(teacher, make_student(std=0.1), video), video


def test_the_loss_of_ctd_by_hand(step):
    """Each channel of the pooled teacher has mean 0 and deviation 1, clamped at 3; the mean squared error to it."""
    step, video = step
    features = step.pooled_teacher.teacher(video)
    patches = features.patches.double()  # [2,8,8,8,128]
    weights = (patches * features.query.double()[:, :, None, None]).sum(-1) / 128**0.5

    def windows(x):  # [2,8,8,8,...] -> [2,2,4,4,16,...]
        x = x.unflatten(3, (4, 2)).unflatten(2, (4, 2)).unflatten(1, (2, 4))
        return x.movedim((1, 3, 5, 2, 4, 6), (1, 2, 3, 4, 5, 6)).flatten(4, 6)

    pooled = (windows(patches) * windows(weights).softmax(-1)[..., None]).sum(4)  # [2,2,4,4,128]
    rows = pooled.flatten(0, 3)
    target = ((pooled - rows.mean(0)) / rows.std(0, correction=0)).clamp(-3, 3)
    with torch.no_grad():
        expected = (step.student(video).double() - target).square().mean()
        assert step(video).double() == pytest.approx(float(expected), rel=1e-5)
        assert torch.equal(step(video), step(video, step.pool(video)))


def test_a_step_that_goes_wrong_on_the_device_is_found(step, monkeypatch):
    step, video = step
    assert [row["status"] for row in check_step(step, CPU, video)] == ["ok", "ok"]

    def with_a_wrong_kernel(self, precision, device):
        wrong = copy.deepcopy(self)
        wrong.student.blocks[1].temporal.weight.data = wrong.student.blocks[1].temporal.weight.data.flip(-1)
        return wrong

    monkeypatch.setattr(CtdStep, "to_precision", with_a_wrong_kernel)
    assert [row["status"] for row in check_step(step, CPU, video)] == ["wrong", "wrong"]


class Odd(nn.Module):
    """A student that is a tenth off in bfloat16, alone or where its video is long."""

    def __init__(self, config, frames):
        super().__init__()
        self.encoder, self.frames = make_student(config, std=0.1), frames

    def forward(self, video):
        off = video.dtype == torch.bfloat16 and video.shape[0] * video.shape[1] >= self.frames
        return self.encoder(video) * (1.1 if off else 1.0)


def test_an_encoder_that_is_wrong_is_not_timed():
    setup = Setup((8, 16), 64, torch.bfloat16, 0, 1, compiled=False, tiny=True)
    config = student_config()
    encoders = [Encoder("odd", config, lambda: Odd(config, 16), PYTORCH)]
    right, wrong = encoder_rows(setup, CPU, lambda text: None, encoders)
    assert (right["status"], right["error"] < 0.02, right["median_ms"] > 0) == ("ok", True, True)
    assert (wrong["status"], round(wrong["error"], 1), "median_ms" in wrong) == ("wrong", 0.1, False)


def test_an_exported_encoder_computes_the_same():
    student = make_student(std=0.1).eval()
    exported = exported_encoder(copy.deepcopy(student))
    assert type(exported).__module__.startswith("exported_")
    video = torch.randn(1, 8, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(exported(video).last_hidden_state, student.for_inference()(video))
