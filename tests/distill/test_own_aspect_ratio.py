"""CTD on frames in their own aspect ratio: batches of one size, resumed bit for bit, live and from a cache."""

import json
import signal

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from worlds.ctd import write_ctd_config, write_video
from worlds.states import assert_same_state

from liteframe import encode_video
from liteframe.cli.main import main
from liteframe.data.manifest import VideoEntry
from liteframe.data.preprocess import FrameFormat
from liteframe.data.video.process import DecodeProcess
from liteframe.data.video.reader import read_frames
from liteframe.distill.buckets import clip_sizes, describe_sizes, frame_shapes
from liteframe.distill.cache.builder import CacheOptions, builder_of_run
from liteframe.distill.cache.reader import TargetCache
from liteframe.distill.command import CTDCommand
from liteframe.distill.datamodule import ClipDataModule
from liteframe.distill.module import CTDModule
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.training.cache.build import build_cache
from liteframe.training.command import load_run

SQUARE, FILM, PHONE = (64, 64), (32, 96), (96, 32)  # of four tokens of 32 pixels: two blocks, merged 2x2
SHAPES = {(64, 64): SQUARE, (36, 86): FILM, (96, 54): PHONE}


@pytest.fixture(scope="module")
def config(vlm_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "videos").mkdir()
    for number, shape in enumerate([(64, 64)] * 3 + [(36, 86)] * 2 + [(96, 54)]):
        write_video(folder / "videos" / f"clip{number}.mp4", size=shape, seed=number)
    (folder / "videos" / "broken.mp4").write_bytes(b"\0" * 100)
    return write_ctd_config(
        folder / "aspect.yaml",
        vlm_folder,
        folder / "videos",
        model={"student": {"resize": "aspect"}},
        data={"max_failure_rate": 0.9, "val_fraction": 0, "val_videos": str(folder / "videos")},
        trainer={"max_steps": 7},
    )


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    """A run that nobody stopped: its folder, and what it said."""
    run, said = tmp_path_factory.mktemp("straight") / "run", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("liteframe.distill.callbacks.tell", said.append)
        sizes = watched(patch)
        CTDCommand(["fit", "--config", str(config), "--run", str(run)])
    return run, sizes, said


def watched(patch):
    """Size and paths of every training batch."""
    seen, original = [], CTDModule.training_step

    def step(self, batch, batch_idx):
        if batch.paths:
            seen.append((tuple(batch.video.shape[-2:]), tuple(batch.paths)))
        return original(self, batch, batch_idx)

    patch.setattr(CTDModule, "training_step", step)
    return seen


def test_batches_have_the_sizes_of_their_videos(config, straight):
    run, seen, said = straight
    assert {size for size, _ in seen} == set(SHAPES.values())
    for size, paths in seen:
        for path in paths:
            assert SHAPES[read_frames(path, [0]).shape[1:3]] == size
    assert any("64x64 (4), 32x96 (2), 96x32 (1)" in line for line in said)  # the broken one is put where most are
    assert any("fewer videos than the 2 clips of a step have 96x32 (1)" in line for line in said)
    saved = json.loads((run / "encoder" / "preprocessor_config.json").read_text())
    assert (saved["resize"], saved["multiple"]) == ("aspect", [32, 32])
    assert json.loads((run / "report.json").read_text())["data"]["clips_failed"] > 0
    encoder = LiteFrameEncoder.from_pretrained(run / "encoder")
    for number, (height, width) in ((0, SQUARE), (3, FILM), (5, PHONE)):
        tokens = encode_video(encoder, config.parent / "videos" / f"clip{number}.mp4", frames=8)
        assert tokens.shape == (1, 2, height // 16, width // 16, 32)


def test_stopped_and_resumed_equals_straight(config, straight, tmp_path, monkeypatch, capsys):
    seen, run = watched(monkeypatch), tmp_path / "stopped"
    original = CTDModule.on_before_optimizer_step

    def stop_once(self, optimizer):
        if self.global_step == 3 and not hasattr(stop_once, "done"):
            stop_once.done = True
            signal.raise_signal(signal.SIGTERM)
        return original(self, optimizer)

    monkeypatch.setattr(CTDModule, "on_before_optimizer_step", stop_once)
    words = ["fit", "--config", str(config), "--run", str(run)]
    with pytest.raises(SystemExit):
        CTDCommand(words)
    with pytest.raises(SystemExit):
        CTDCommand([*words, "--resume", "--model.student.resize", "squash"])
    assert "model.student.resize was 'aspect' and is 'squash'" in capsys.readouterr().err
    CTDCommand([*words, "--resume"])
    assert seen == straight[1]
    expected, result = weights(straight[0]), weights(run)
    assert result["global_step"] == expected["global_step"] == 7
    for part in ("state_dict", "optimizer_states"):
        assert_same_state(expected[part], result[part])


def test_a_cache_holds_the_sizes_and_serves_no_other_mode(config, straight, tmp_path, monkeypatch):
    run = load_run(CTDCommand, ["--config", str(config)])
    builder = builder_of_run(
        run, CacheOptions(views=4, codec="bf16", jpeg_quality=90, shard_clips=4), Fabric(accelerator="cpu", devices=1)
    )
    folder = tmp_path / "cache"
    build_cache(builder, folder, say=lambda _: None, advance=lambda *_: None)
    cache = TargetCache.open(folder)
    clips = [cache.read("train", 0, index) for index in range(7)]
    sizes = [clip.view.size for clip in clips if hasattr(clip, "view")]
    assert sorted(sizes) == sorted([SQUARE] * 3 + [FILM] * 2 + [PHONE])
    for clip in clips:
        if hasattr(clip, "view"):
            height, width = clip.view.size
            assert clip.target.shape == (2, height // 16, width // 16, 32)
            assert clip.frames.shape == (8, height, width, 3)
    assert main(["cache", "verify", str(folder), "--sample", "6"]) == 0
    words = ["fit", "--config", str(config), "--data.cache", str(folder)]
    seen = watched(monkeypatch)
    CTDCommand([*words, "--run", str(tmp_path / "cached")])
    assert seen == straight[1]
    with pytest.raises(ValueError, match="resize is 'aspect' there and 'squash' here"):
        CTDCommand([*words, "--run", str(tmp_path / "squash"), "--model.student.resize", "squash"])


def test_one_number_is_the_budget():
    frames = FrameFormat((64, 64), (0.5,) * 3, (0.5,) * 3, "aspect", (32, 32))
    assert ClipDataModule("videos", frames, size=96).frame_format.size == (96, 96)
    with pytest.raises(ValueError, match=r"data.size is \[32, 64\].* give one number, whose square is the budget"):
        ClipDataModule("videos", frames, size=(32, 64))


def test_lists_that_tell_shapes_are_believed_and_elongated_videos_fail_alone():
    frames = FrameFormat((64, 64), (0.5,) * 3, (0.5,) * 3, "aspect", (32, 32))
    entries = [
        VideoEntry(f"{i}.mp4", height=h, width=w) for i, (h, w) in enumerate([(9, 16), (16, 9), (16, 9), (1, 9)])
    ]
    sizes = clip_sizes(frame_shapes(entries, DecodeProcess()), frames)
    assert sizes == [FILM, PHONE, PHONE, PHONE]
    assert describe_sizes(sizes, step=1) == [
        "frames keep their aspect ratio; sizes of clips, height x width, and videos that have them: "
        "96x32 (3), 32x96 (1)"
    ]
    assert clip_sizes([None], frames) == [SQUARE]
    assert np.prod(FILM) <= 64 * 64
