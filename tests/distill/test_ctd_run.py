"""train_ctd.py from a folder of H.264 files to an encoder, through its real entry point."""

import json
import os
import re
import signal
import sys
import time

import pytest
import torch
import yaml
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from worlds import ROOT
from worlds.forked import Program

from liteframe.distill.module import CTDModule
from liteframe.models.student.encoder import LiteFrameEncoder


@pytest.fixture(scope="module")
def finished(tiny_config, tmp_path_factory):
    """A finished run, what its module said at the end, and the module."""
    import train_ctd

    run = tmp_path_factory.mktemp("runs") / "run"
    kept = {}
    original = CTDModule.on_validation_epoch_end

    def keep(self):
        kept["module"] = self
        original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CTDModule, "on_validation_epoch_end", keep)
        patch.setattr(sys, "argv", ["train_ctd.py", "fit", "--config", str(tiny_config), "--run", str(run)])
        train_ctd.main()
    return run, kept["module"]


def test_report(finished, vlm_folder, video_folder):
    run, module = finished
    report = json.loads((run / "report.json").read_text())
    assert (report["kind"], report["steps"], report["seed"]) == ("ctd", 7, 3)
    assert {"train/loss", "train/cosine", "train/gradient_norm", "train/clipped_fraction", "val/token_cosine",
            "val/explained_variance_mean", "val/explained_variance_median", "val/projected_cosine"} <= set(
        report["figures"])  # fmt: skip
    assert report["teacher"]["name"] == str(vlm_folder)
    assert report["teacher"]["sha256"] == module.teacher.identity
    assert report["data"]["train_videos"] == 4
    assert report["data"]["val_videos"] == 1
    # 4 for the statistics, 14 to train, 1 for each of three validations.
    assert report["data"]["clips_read"] == 21
    assert report["student"]["parameters"] == sum(p.numel() for p in LiteFrameEncoder.from_pretrained(
        run / "encoder").parameters())  # fmt: skip
    assert report["versions"]["torch"] == torch.__version__.split("+")[0]
    assert report["time"]["train_seconds"] > 0
    assert 0 <= report["time"]["data_wait_share"] <= 1
    assert report["device"].startswith("cpu")


def test_configuration_is_resolved_and_starts_a_run(finished, fit, tmp_path):
    config = yaml.safe_load((finished[0] / "config.yaml").read_text())
    assert config["model"]["student"]["temporal_kernel"] == 3
    assert config["resume"] is False
    fit("--run", tmp_path / "again", "--trainer.max_steps", 1, config=finished[0] / "config.yaml")
    assert json.loads((tmp_path / "again" / "report.json").read_text())["steps"] == 1


def test_checkpoint_holds_plain_values_and_no_teacher(finished):
    checkpoint = torch.load(finished[0] / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 7
    names = set(checkpoint["state_dict"])
    assert {name.split(".")[0] for name in names} == {"student", "target"}
    shapes = {tuple(p.shape) for p in finished[1].teacher.tower.parameters() if p.numel() > 1000}
    assert not shapes & {tuple(tensor.shape) for tensor in checkpoint["state_dict"].values()}
    assert not list((finished[0] / "checkpoints").glob(".*"))


def test_statistics_are_saved(finished):
    with safe_open(finished[0] / "target_statistics.safetensors", "pt") as file:
        # 4 clips x 2 slots x 16 tokens
        assert file.metadata()["tokens"] == "128"
        assert torch.equal(file.get_tensor("mean"), finished[1].target.mean)


def test_saved_encoder_is_the_student_in_raw_space(finished):
    run, module = finished
    encoder = LiteFrameEncoder.from_pretrained(run / "encoder")
    video = torch.randn(2, 8, 3, 64, 64)
    with torch.no_grad():
        expected = module.objective.raw(module.student(video))
        assert (encoder(video) - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert (encoder(video) - module.student(video)).abs().max() > 0.1
    assert encoder.config.image_mean == (0.5, 0.5, 0.5)


def test_teacher_stays_frozen(finished):
    teacher = finished[1].teacher
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.tower.parameters())
    assert not any(module.training for module in teacher.tower.modules())
    assert not any(True for _ in teacher.parameters())


def test_tensorboard_has_curves_and_pictures(finished):
    events = EventAccumulator(str(finished[0]), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    assert {"train/loss", "train/lr", "val/token_cosine", "speed/clips_per_second"} <= set(events.Tags()["scalars"])
    pictures = events.Images("frames, saliency, target, student")
    assert [picture.step for picture in pictures] == [1, 3, 6, 7]
    assert (pictures[0].width, pictures[0].height) == (2 * 64, 4 * 64)


def test_teacher_in_training_mode_is_an_error(fit, tmp_path, monkeypatch):
    original = CTDModule.on_train_start

    def spoil(self):
        original(self)
        next(self.teacher.tower.children()).train()

    monkeypatch.setattr(CTDModule, "on_train_start", spoil)
    with pytest.raises(RuntimeError, match="training mode"):
        fit("--run", tmp_path / "run")


def test_a_run_is_never_overwritten(finished, fit, capsys):
    before = (finished[0] / "report.json").read_bytes()
    with pytest.raises(SystemExit) as stop:
        fit("--run", finished[0])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert str(finished[0]) in message
    assert "--resume" in message
    assert (finished[0] / "report.json").read_bytes() == before


def test_resume_of_another_stream_is_refused(finished, fit, capsys):
    with pytest.raises(SystemExit) as stop:
        fit("--run", finished[0], "--resume", "--data.batch_size", 4)
    assert stop.value.code == 2
    assert re.search(r"data.batch_size was 2 and is 4.*--init_from", capsys.readouterr().err)


def test_resume_of_a_finished_run_changes_nothing(finished, fit, capsys):
    before = (finished[0] / "report.json").read_bytes()
    fit("--run", finished[0], "--resume")
    assert "7 steps are done already" in capsys.readouterr().out
    assert (finished[0] / "report.json").read_bytes() == before


def test_resume_needs_a_run(fit, tmp_path, capsys):
    with pytest.raises(SystemExit):
        fit("--run", tmp_path / "none", "--resume")
    assert "leave out --resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data.vidoes", "x"], "vidoes"),
        (["--trainer.logger", "false"], "--trainer.logger has no effect"),
        (["--trainer.accumulate_grad_batches", "4"], "--data.batch_size"),
        (["--data.batch_size", "4", "--data.micro_batch_size", "3"], "the nearest that fits is 3"),
    ],
)
def test_unknown_and_ineffective_keys_are_errors(fit, tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit):
        fit("--run", tmp_path / "run", *arguments)
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_init_from_starts_at_the_saved_encoder(finished, fit, tmp_path, monkeypatch):
    start = {}
    original = CTDModule.on_train_start

    def keep(self):
        start["encoder"] = self.folded_encoder()
        original(self)

    monkeypatch.setattr(CTDModule, "on_train_start", keep)
    fit("--run", tmp_path / "run", "--init_from", finished[0] / "encoder", "--trainer.max_steps", 1,
        "--model.target.standardize", "none")  # fmt: skip
    video = torch.randn(1, 8, 3, 64, 64)
    with torch.no_grad():
        expected = LiteFrameEncoder.from_pretrained(finished[0] / "encoder")(video)
        assert (start["encoder"](video) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_init_from_a_larger_student_cuts_it(finished, fit, tmp_path, monkeypatch, capsys):
    start = {}
    original = CTDModule.on_train_start

    def keep(self):
        start["encoder"] = self.folded_encoder()
        original(self)

    monkeypatch.setattr(CTDModule, "on_train_start", keep)
    fit("--run", tmp_path / "run", "--init_from", finished[0] / "encoder", "--trainer.max_steps", 2,
        "--model.student.dim", 8, "--model.student.heads", 1, "--model.student.mlp_dim", 16)  # fmt: skip
    said = capsys.readouterr().err
    assert re.search(r"cut by weight selection from .*M to .*M .*dim 16 -> 8, heads 2 -> 1, mlp_dim 32 -> 16", said)
    large = LiteFrameEncoder.from_pretrained(finished[0] / "encoder").state_dict()
    small = start["encoder"].state_dict()
    # The head is in raw space before and after; float32 rounds on its way through standardized space.
    torch.testing.assert_close(small["head.weight"], large["head.weight"][:, ::2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(small["head.bias"], large["head.bias"], rtol=1e-4, atol=1e-5)
    assert torch.equal(small["blocks.1.temporal.weight"], large["blocks.1.temporal.weight"][::2])
    assert LiteFrameEncoder.from_pretrained(tmp_path / "run" / "encoder").config.dim == 8


def test_init_from_another_shape(finished, fit, tmp_path):
    with pytest.raises(ValueError, match=r"mlp_dim \(student 48, encoder 32\)"):
        fit("--run", tmp_path / "run", "--init_from", finished[0] / "encoder", "--model.student.mlp_dim", 48)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.student.teacher_dim", 48], "teacher_dim is 48, but .* has 32 channels"),
        (["--model.student.patch_size", 16], "patch_size is 16"),
        (["--data.size", 48], r"multiple of 32.*\[64,64\]"),
    ],
)
def test_misfits_are_found_before_training(fit, tmp_path, arguments, words):
    with pytest.raises(ValueError, match=words):
        fit("--run", tmp_path / "run", *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model.loss", "smooth_l1", "--model.target.clipping", "token_mask", "--model.target.scope", "frame"],
        ["--model.loss", "cosine+smooth_l1", "--model.target.clipping", "loss_clip", "--data.micro_batch_size", 1],
        ["--model.target.clipping", "none", "--model.target.standardize", "none", "--model.init", "random",
         "--data.val_fraction", 0],
        ["--trainer.precision", "bf16-mixed", "--trainer.max_epochs", 1],
    ],
)  # fmt: skip
def test_other_recipes_run(fit, tmp_path, arguments):
    fit("--run", tmp_path / "run", "--trainer.max_steps", 2, *arguments)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["steps"] == 2
    assert ("val/token_cosine" in report["figures"]) == ("--data.val_fraction" not in arguments)
    LiteFrameEncoder.from_pretrained(tmp_path / "run" / "encoder")


@pytest.mark.parametrize(("send", "number"), [(os.kill, signal.SIGTERM), (os.killpg, signal.SIGINT)])
def test_kill_and_ctrl_c_leave_a_checkpoint(tiny_config, tmp_path, send, number):
    """A real process with a decoding worker; Ctrl-C in a terminal reaches the workers too."""
    command = [sys.executable, str(ROOT / "train_ctd.py"), "fit", "--config", str(tiny_config),
               "--run", str(tmp_path / "run"), "--trainer.max_steps", "100000", "--data.workers", "1"]  # fmt: skip
    process = Program(command, cwd=ROOT)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 400  # a loaded machine imports slowly
    while not last.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    assert last.exists()
    send(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert "continue with --resume" in errors
    assert "Traceback" not in errors
    assert torch.load(last, weights_only=True)["global_step"] >= 1
