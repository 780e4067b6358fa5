"""What a build stores, against the live clips and an independent computation of their targets."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from liteframe_kernels.weighted_average_pool.reference import weighted_average_pool_reference
from safetensors.torch import load_file
from worlds.cache import contents

import train_ctd
from liteframe.cli.main import main
from liteframe.data.manifest import hold_out, load_manifest
from liteframe.data.preprocess import FrameFormat, FrameTransform
from liteframe.data.video.errors import VideoError
from liteframe.data.video.reader import read_frames
from liteframe.distill.cache import TargetCache
from liteframe.distill.command import CTDCommand
from liteframe.models.teacher.load import load_teacher
from liteframe.training.command import load_run
from liteframe.training.failures import TooManyBadVideosError


def live_target(view, cache):
    """Decode in this process, cut by hand, and pool with the loop-free reference."""
    frames = read_frames(view.video, list(view.indices), reader="pyav", size=view.decode_size)
    if view.box is not None:
        top, left, height, width = view.box
        frames = frames[:, top : top + height, left : left + width]
    if view.flip:
        frames = frames[:, :, ::-1]
    transform = FrameTransform(64, (0.5,) * 3, (0.25,) * 3)
    frames = np.ascontiguousarray(frames)
    features = load_teacher(cache.settings.teacher)(transform(frames)[None])
    mask = torch.tensor(view.frame_mask)[None]
    pooled = weighted_average_pool_reference(features.patches, query=features.query, frame_mask=mask)
    return pooled[0], transform.resized(frames).permute(0, 2, 3, 1).numpy()


def test_every_clip_is_the_live_one(small_cache, cache_yaml):
    """Each view of each video: its key, its target within the codec's bound, its frames as JPEG keeps them."""
    train, val = hold_out(load_manifest(cache_yaml.parent / "videos"), 0.2)
    assert (len(train), len(val)) == (small_cache.settings.train_videos, small_cache.settings.val_videos)
    views, failures = set(), []
    for part, entries, numbers in (("train", train, range(2)), ("val", val, range(1))):
        for number in numbers:
            for index, entry in enumerate(entries):
                clip = small_cache.read(part, number, index)
                if isinstance(clip, VideoError):
                    failures.append((part, number, clip.path))
                    continue
                assert clip.view.video == entry.video
                target, frames = live_target(clip.view, small_cache)
                # int8 rounds by half a step, of which a token's largest value has 127.
                difference = (clip.target - target) / small_cache.codec.std
                white = (target - small_cache.codec.mean) / small_cache.codec.std
                assert (difference.abs() <= white.abs().amax(-1, keepdim=True) / 254 + 1e-4).all()
                assert clip.frames.shape == (8, 64, 64, 3)
                assert np.abs(clip.frames.astype(int) - frames).mean() < 3
                views.add((clip.view.video, clip.view.indices, clip.view.box, clip.view.flip))
                assert (part == "val") == (clip.view.box is None)
                assert ("clip2" in entry.video) == (not all(clip.view.frame_mask))
    # Stored as what they are, for every view.
    assert [(part, number) for part, number, _ in failures] == [("train", 0), ("train", 1)]
    assert all(path.endswith("broken.mp4") for _, _, path in failures)
    assert len(views) == 2 * (len(train) - 1) + len(val)


def test_views_are_those_of_the_live_dataset(small_cache, cache_yaml):
    data = load_run(CTDCommand, ["--config", str(cache_yaml)]).data
    settings = small_cache.settings
    assert data.frame_format == FrameFormat(
        settings.size, settings.mean, settings.std, settings.resize, settings.multiple
    )
    live = data.train_clips()
    for key in ((0, 0), (1, 3), (1, settings.train_videos - 1)):
        stored = small_cache.read("train", *key)
        if not isinstance(stored, VideoError):
            assert live.view(key) == stored.view


def test_statistics_are_those_of_a_run(small_cache, cache_yaml, tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["train_ctd.py", "fit", "--config", str(cache_yaml), "--run", str(tmp_path / "run")]
    )
    train_ctd.main()
    measured = load_file(tmp_path / "run" / "target_statistics.safetensors")
    statistics = small_cache.statistics
    assert torch.equal(measured["mean"], statistics.mean.float())
    assert torch.allclose(measured["std"], statistics.std.float(), rtol=1e-6)
    norm_mean, norm_std = statistics.norm_mean_std
    assert torch.allclose(measured["norm_limit"], torch.tensor(norm_mean + 3 * norm_std), rtol=1e-6)


def test_codecs_agree_on_the_same_clips(small_cache, build, tmp_path):
    exact = build(tmp_path / "bf16", views=1, codec="bf16")
    assert exact.read("train", 0, 1).frames is None
    for index in (0, 2):
        target = exact.read("val" if index == 0 else "train", 0, index).target.float()
        same = small_cache.read("val" if index == 0 else "train", 0, index).target
        assert ((same - target) / small_cache.codec.std).square().mean().sqrt() < 0.02
    small = build(tmp_path / "int8", views=1, codec="int8")
    sizes = [sum(info.bytes for info in cache.index.shards.values()) for cache in (exact, small)]
    assert sizes[1] < 0.8 * sizes[0]


def test_a_finished_cache_is_not_built_again(small_cache, build):
    before = contents(small_cache.folder)
    said = []
    build(small_cache.folder, views=2, codec="int8", jpeg_quality=90, shard_clips=2, say=said.append)
    assert contents(small_cache.folder) == before
    assert not said


def test_a_lost_shard_is_made_again(small_cache, build, tmp_path):
    folder = shutil.copytree(small_cache.folder, tmp_path / "copy")
    (folder / "train-001-00001.safetensors").unlink()
    (folder / ".train-001-00002.safetensors.77.tmp").write_bytes(b"left by a killed build")
    with pytest.raises(ValueError, match=r"train-001-00001.*cache build"):
        TargetCache.open(folder).read("train", 1, 2)
    build(folder, views=2, codec="int8", jpeg_quality=90, shard_clips=2)
    assert contents(folder) == contents(small_cache.folder)


def test_what_is_no_shard_of_this_cache_is_made_again(small_cache, build, tmp_path):
    """An unfinished folder with half a shard, a file of something else, and shards of other caches."""
    folder = shutil.copytree(small_cache.folder, tmp_path / "copy")
    (folder / "index.json").unlink()
    shard = folder / "train-000-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    (folder / "train-000-00001.safetensors").write_bytes(b"something else")
    shutil.copy(folder / "statistics.safetensors", folder / "train-000-00002.safetensors")
    other = build(tmp_path / "bf16", views=1, codec="bf16", shard_clips=2).folder
    shutil.copy(other / "train-000-00003.safetensors", folder / "train-000-00003.safetensors")
    shutil.copy(folder / "train-001-00001.safetensors", folder / "val-000-00000.safetensors")
    build(folder, views=2, codec="int8", jpeg_quality=90, shard_clips=2)
    assert contents(folder) == contents(small_cache.folder)


@pytest.mark.parametrize(
    ("words", "options", "name"),
    [
        (["--model.target.scope", "frame"], {}, "scope is 'block' there and 'frame' here"),
        (["--seed_everything", "4"], {}, "seed is 3 there and 4 here"),
        (["--data.augment.flip", "0"], {}, "flip is 0.5 there and 0.0 here"),
        ([], {"views": 3}, "views is 2 there and 3 here"),
        ([], {"codec": "bf16"}, "codec is 'int8' there and 'bf16' here"),
        ([], {"jpeg_quality": None}, "jpeg_quality is 90 there and None here"),
    ],
)
def test_other_settings_are_refused_and_named(small_cache, build, words, options, name):
    before = contents(small_cache.folder)
    with pytest.raises(ValueError, match=name):
        build(
            small_cache.folder, *words, **{"views": 2, "codec": "int8", "jpeg_quality": 90, "shard_clips": 2, **options}
        )
    assert contents(small_cache.folder) == before


def test_a_folder_of_something_else_is_refused(build, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no target cache"):
        build(tmp_path, views=1)
    assert list(contents(tmp_path)) == ["notes.txt"]
    with pytest.raises(ValueError, match="holds no target cache"):
        build(tmp_path / "notes.txt", views=1)


def test_shards_without_settings_are_refused(small_cache, build, tmp_path):
    """Nothing says which settings they were made with."""
    folder = shutil.copytree(small_cache.folder, tmp_path / "copy")
    (folder / "settings.json").unlink()
    with pytest.raises(ValueError, match="holds no target cache"):
        build(folder, views=2, codec="int8", jpeg_quality=90, shard_clips=2)


def test_size_and_time_are_said_before_anything_is_written(build, tmp_path, monkeypatch):
    said = []
    folder = tmp_path / "new"

    def say(message):
        assert not folder.exists()
        said.append(message)

    cache = build(folder, views=2, codec="bf16", jpeg_quality=80, say=say)
    assert len(said) == 1
    assert "targets 0.256 kB a frame (bf16)" in said[0]
    assert "ms a clip for the teacher" in said[0]
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(ValueError, match=r"1 kB free, the cache needs .* kB") as refusal:
        build(tmp_path / "other", views=2, codec="bf16", jpeg_quality=80)
    assert not (tmp_path / "other").exists()
    needed = float(str(refusal.value).split("needs ")[1].split(" kB")[0]) * 1e3
    written = sum(info.bytes for info in cache.index.shards.values())
    assert written < needed < 2.5 * written


def test_too_many_failures_stop_before_they_are_stored(build, tmp_path):
    with pytest.raises(TooManyBadVideosError, match=r"3 of 2\d clips.*\n.*broken\.mp4: truncated.*\n.*liteframe scan"):
        build(tmp_path / "cache", "--data.max_failure_rate", 0, views=3)
    assert "train-002-00000.safetensors" not in contents(tmp_path / "cache")


def test_commands(cache_yaml, tmp_path, capsys):
    folder = tmp_path / "cache"
    assert main(["cache", "build", "--config", str(cache_yaml), "-o", str(folder), "--views", "1", "--codec", "int8",
                 "--frames", "jpeg", "--data.deadline", "31"]) == 0  # fmt: skip
    assert main(["cache", "info", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "finished" in printed
    assert "1 of 1 views of" in printed
    assert "1 of them could not be read" in printed
    assert main(["cache", "verify", str(folder), "--sample", "4"]) == 0
    assert "4 clips compared" in capsys.readouterr().out
    assert main(["cache", "build", "--config", str(cache_yaml), "-o", str(folder), "--views", "2"]) == 2
    assert "views is 1 there and 2 here" in capsys.readouterr().err
    (folder / "index.json").unlink()
    assert main(["cache", "verify", str(folder)]) == 2
    assert "not finished" in capsys.readouterr().err
    assert json.loads((folder / "settings.json").read_text())["codec"] == "int8"
