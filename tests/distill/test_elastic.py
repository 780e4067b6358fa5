"""CTD of an elastic student: all modes in each step, live and from a cache, each as CTD of that mode by itself."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from worlds.students import make_student, student_config

import train_ctd
from liteframe import LiteFrameEncoder, load_teacher
from liteframe.cli.main import main
from liteframe.distill.cache import TargetCache
from liteframe.distill.objectives import make_objective, objectives
from liteframe.distill.statistics import RunningStatistics
from liteframe.distill.targets import TargetSettings
from liteframe.models.student.elastic import all_modes, standard_modes
from liteframe.reduce.pooled_teacher import PooledTeacher

STRIDES = {1: (2, 2, 2), 2: (2, 1, 1)}
MODES = standard_modes(STRIDES)
SHAPE = {"dim": 16, "depth": 2, "heads": 2, "mlp_dim": 32, "teacher_dim": 32, "clip_frames": 8}
ONE_STEP = ["--trainer.max_steps", 1, "--trainer.val_check_interval", 1, "--model.target.statistics_clips", 2]
NOTHING = ["--model.optimizer.lr", 1e-12]


def modes(*names):
    return ["--model.student.modes", json.dumps({name: MODES[name] for name in names})]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A trained student of 16x, as far as anybody can tell."""
    folder = tmp_path_factory.mktemp("plain")
    make_student(student_config(**SHAPE, image_mean=(0.5,) * 3, image_std=(0.25,) * 3)).save_pretrained(folder)
    return folder


def test_the_loss_is_the_mean_over_modes_of_ctd_by_itself(vlm_folder):
    """Each against WAP over its own windows, standardized by the statistics of 16x."""
    teacher = load_teacher(str(vlm_folder))
    student = make_student(student_config(**SHAPE, modes=MODES))
    video = torch.randn(2, 8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[1, 3:] = False
    settings = TargetSettings()
    objective = make_objective("ctd", teacher.dim, settings, "mse", student.config)
    assert (objective.pooling, objective.statistics_window) == ((1, 2, 2), (4, 2, 2))
    finest = PooledTeacher(teacher, objective.pooling)(video, mask, log_weights=True)
    own = PooledTeacher(teacher)(video, mask)
    running = RunningStatistics(teacher.dim)
    running.update(own.tokens[own.slots].flatten(0, -2))
    statistics = running.freeze()
    objective.fit(statistics)
    torch.testing.assert_close(objective.own(finest).tokens, own.tokens, rtol=1e-4, atol=1e-4)
    tokens = objective.student_tokens(student, video)
    target = objective.targets(finest.tokens, finest.slots, finest.log_weights)
    made, figures, losses, cosines = objective.loss(tokens, target), objective.figures(tokens, target), [], {}
    for mode, window in student.config.windows.items():
        single = objectives["ctd"](teacher.dim, settings, "mse", window)
        single.fit(statistics)
        pooled = PooledTeacher(teacher, window)(video, mask)
        alone, of_mode = student(video, mode), single.targets(pooled.tokens, pooled.slots)
        losses.append(single.loss(alone, of_mode))
        cosines["cosine" if mode == "16x" else f"cosine_{mode}"] = single.figures(alone, of_mode)["cosine"]
    torch.testing.assert_close(
        made.per_clip, torch.stack([one.per_clip for one in losses]).mean(0), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(made.clipped, torch.stack([one.clipped for one in losses]).mean(), rtol=1e-3, atol=1e-4)
    assert figures.keys() == cosines.keys() == set(objective.figure_names)
    for name, cosine in cosines.items():
        torch.testing.assert_close(figures[name], cosine, rtol=1e-4, atol=1e-4)
    compared = objective.compared(tokens, finest)
    assert list(compared) == ["_4x", "_8x", "", "_32x", "_64x"]
    assert [raw.shape for raw, _ in compared.values()] == [pooled.tokens.shape for _, pooled in compared.values()]


def train(config, run, *arguments):
    """The report of a run of one step."""
    with pytest.MonkeyPatch.context() as patch:
        words = ["train_ctd.py", "fit", "--config", config, "--run", run, *ONE_STEP, *arguments]
        patch.setattr(sys, "argv", [*map(str, words)])
        train_ctd.main()
    return json.loads((run / "report.json").read_text())


@pytest.fixture(scope="module")
def still(plain, tiny_config, tmp_path_factory):
    """An elastic run from the student of 16x that learns nothing, and its report."""
    run = tmp_path_factory.mktemp("still") / "run"
    return run, train(tiny_config, run, "--init_from", plain, *modes("8x", "32x"), *NOTHING)


def test_a_run_from_a_student_of_one_compression(still, plain, tiny_config, tmp_path):
    """It starts with that one's output, measures every mode, and leaves an elastic encoder."""
    encoder, video = LiteFrameEncoder.from_pretrained(still[0] / "encoder"), torch.randn(1, 8, 3, 64, 64)
    assert encoder.config.modes == {name: MODES[name] for name in ("8x", "16x", "32x")}
    expected = LiteFrameEncoder.from_pretrained(plain)(video)
    torch.testing.assert_close(encoder(video), expected, rtol=1e-4, atol=1e-4)  # by way of the standardized space
    report = train(tiny_config, tmp_path / "run", "--init_from", still[0] / "encoder", *modes("8x", "32x"))
    assert {f"val/token_cosine{mode}" for mode in ("", "_8x", "_32x")} <= set(report["figures"])
    assert {f"train/cosine{mode}" for mode in ("", "_8x", "_32x")} <= set(report["figures"])
    assert report["student"]["modes"]["32x"] == {"1": [2, 2, 2], "2": [4, 1, 1]}
    trained = LiteFrameEncoder.from_pretrained(tmp_path / "run" / "encoder")
    assert not torch.equal(trained.downsample["2"].weight, encoder.downsample["2"].weight)
    # An ordinary student does not start from several.
    with pytest.raises(ValueError, match=r"it is elastic, with modes 8x, 16x, 32x, and .*liteframe extract"):
        train(tiny_config, tmp_path / "no", "--init_from", tmp_path / "run" / "encoder")


@pytest.fixture(scope="module")
def cache(tiny_config, tmp_path_factory):
    """Of the finest mode 8x, with weights, in bfloat16."""
    folder = tmp_path_factory.mktemp("cache") / "cache"
    words = ["cache", "build", "-o", folder, "--config", tiny_config, "--views", 1, *modes("8x", "32x"), *ONE_STEP[-2:]]
    assert main([*map(str, words)]) == 0
    return folder


def test_a_cache_of_the_finest_windows_serves_all_coarser_ones(still, cache, plain, tiny_config, tmp_path):
    """The elastic run that it was built for, and one of 16x: figures and statistics are those of live targets."""
    settings = TargetCache.open(cache).settings
    assert (settings.compression, settings.statistics_window, settings.log_weights) == ((2, 2, 2), (4, 2, 2), True)
    assert main(["cache", "verify", str(cache), "--sample", "1"]) == 0
    stored = load_file(still[0] / "target_statistics.safetensors")
    for name, more in (("elastic", modes("8x", "32x")), ("plain", [])):
        run = tmp_path / name
        report = train(tiny_config, run, "--init_from", plain, *NOTHING, "--data.cache", cache, *more)
        measured = load_file(run / "target_statistics.safetensors")
        for statistic in ("mean", "std"):  # measured before anything was rounded
            torch.testing.assert_close(measured[statistic], stored[statistic], rtol=1e-4, atol=1e-4)
        for figure in ("val/token_cosine", *(["val/token_cosine_8x", "val/token_cosine_32x"] if more else [])):
            assert report["figures"][figure] == pytest.approx(still[1]["figures"][figure], abs=2e-3)  # bfloat16


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (modes("4x", "8x"), r"is too coarse: windows of \(1, 2, 2\) are not made of windows of \(2, 2, 2\)"),
        (["--model.objective", "rtd_repeat"], r"is too coarse: windows of \(1, 1, 1\)"),
    ],
)
def test_a_cache_that_is_too_coarse_is_refused(fit, cache, tmp_path, more, words):
    with pytest.raises(ValueError, match=words + r".*liteframe cache build"):
        fit("--run", tmp_path / "run", "--data.cache", cache, *more, *ONE_STEP)


def test_what_knows_one_compression_is_refused(fit, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"'rtd', which knows one compression, and model.student.modes names 8x, 16x"):
        fit("--run", tmp_path / "run", "--model.objective", "rtd", *modes("8x"))
    monkeypatch.setattr("liteframe.distill.module.is_sharded", lambda model: True)
    with pytest.raises(ValueError, match="fsdp2 divides a student of one compression, not of modes: use ddp"):
        fit("--run", tmp_path / "run", *modes("8x"))


def test_a_step_without_clips_has_gradients_for_all(vlm_folder):
    student = make_student(student_config(**SHAPE, modes=MODES))
    objective = make_objective("ctd", 32, TargetSettings(), "mse", student.config)
    objective.idle(all_modes(student, torch.zeros(1, 8, 3, 64, 64))).backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in student.parameters())
