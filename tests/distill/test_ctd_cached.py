"""Training from a target cache, against a live run whose targets were written down clip by clip."""

import dataclasses
import json
import os
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_ctd
from liteframe.data.preprocess import FrameTransform
from liteframe.data.video.errors import VideoError
from liteframe.data.video.reader import read_frames
from liteframe.distill.cache import CacheSettings, TargetCache
from liteframe.distill.module import CTDModule


class WrittenDown(TargetCache):
    """What a live run computed, as a TargetCache would give it back."""

    def __init__(self, settings, statistics, clips):
        self.settings, self.statistics, self.clips = settings, statistics, clips
        self.folder, self.index = "CACHE", SimpleNamespace(to_json=lambda: repr(settings))

    def read(self, part, view, index):
        assert view < self.settings.views
        return self.clips[part, view, index]

    def changed(self, change, **settings):
        clips = {key: change(key, clip) for key, clip in self.clips.items()}
        return WrittenDown(dataclasses.replace(self.settings, **settings), self.statistics, clips)


def train(config, run, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        words = ["train_ctd.py", "fit", "--config", str(config), "--run", str(run), *map(str, arguments)]
        patch.setattr(sys, "argv", words)
        train_ctd.main()
    return json.loads((run / "report.json").read_text())


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def same(one, two):
    return all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.fixture(scope="module")
def live(seven_steps):
    """A live run's folder and report, and all that it computed as a cache of four views."""
    run, module, measured = seven_steps.run, seven_steps.module, seven_steps.statistics
    report = json.loads((run / "report.json").read_text())
    settings = CacheSettings(
        **module.target_identity, **module.data().clip_identity(), teacher="vlm",
        teacher_options={}, patch_size=8, license=None, precision="32-true", views=4, codec="bf16", jpeg_quality=None,
        shard_clips=2,
    )  # fmt: skip
    return run, report, WrittenDown(settings, measured, seven_steps.clips)


@pytest.fixture
def use(monkeypatch):
    """Open this cache, whatever the folder."""
    return lambda cache: monkeypatch.setattr(TargetCache, "open", lambda folder: cache)


def test_targets_in_full_precision_give_the_live_run(live, use, tiny_config, tmp_path, monkeypatch):
    """Bit for bit: same clips, same statistics, same order; and the teacher's ViT is never asked."""
    run, report, cache = live
    use(cache)
    dropped = []
    monkeypatch.setattr(
        CTDModule, "on_train_start", lambda self: dropped.append([type(part) for part in self.teacher.parts])
    )
    cached = train(tiny_config, tmp_path / "cached", "--data.cache", "CACHE")
    assert same(weights(run), weights(tmp_path / "cached"))
    assert {name: value for name, value in cached["figures"].items() if name.startswith("val/")} == {
        name: value for name, value in report["figures"].items() if name.startswith("val/")
    }
    assert [len(parts) for parts in dropped] == [1]  # the projector
    assert cached["data"]["cache"]["codec"] == "bf16"
    assert cached["teacher"] == report["teacher"]
    # 14 to train, 1 for each of three validations; none for statistics.
    assert cached["data"]["clips_read"] == 17
    events = EventAccumulator(str(tmp_path / "cached"), size_guidance={"images": 0})
    events.Reload()
    picture = events.Images("frames, target, student")[-1]
    assert (picture.width, picture.height) == (2 * 64, 3 * 64)


def test_bfloat16_targets_and_stored_frames(live, use, tiny_config, tmp_path, monkeypatch):
    """Validation as in the live run to rounding, with the frames out of the cache; no file is decoded."""
    _, report, cache = live
    settings = cache.settings
    transform = FrameTransform(settings.size, settings.mean, settings.std, settings.resize)

    def stored(key, clip):
        small = transform.resized(clip.view.cut(read_frames(clip.view.video, clip.view.indices)))
        frames = small.permute(0, 2, 3, 1).contiguous().numpy()
        return dataclasses.replace(clip, target=clip.target.bfloat16(), frames=frames)

    use(cache.changed(stored))
    monkeypatch.setattr("liteframe.data.video.process.DecodeProcess.read", None)
    cached = train(tiny_config, tmp_path / "cached", "--data.cache", "CACHE", "--data.workers", 1)
    for name, value in report["figures"].items():
        if name.startswith("val/"):
            assert cached["figures"][name] == pytest.approx(value, abs=2e-3), name
    assert cached["figures"]["val/token_cosine"] != report["figures"]["val/token_cosine"]


def test_fewer_views_than_epochs_come_round_again(live, use, tiny_config, tmp_path, monkeypatch):
    cache = live[2].changed(lambda key, clip: clip, views=2)
    use(cache)
    seen = []
    monkeypatch.setattr(CTDModule, "on_train_batch_start", lambda self, batch, batch_idx: seen.append(batch))
    train(tiny_config, tmp_path / "cached", "--data.cache", "CACHE", "--trainer.limit_val_batches", 0)
    assert {epoch for batch in seen for epoch, _ in batch.keys} == {0, 1, 2, 3}
    for batch in seen:
        for (epoch, index), target in zip(batch.keys, batch.targets, strict=True):
            assert torch.equal(target, cache.clips["train", epoch % 2, index].target)


@pytest.mark.parametrize(
    ("settings", "arguments", "words"),
    [
        ({"teacher_sha256": "0" * 64}, [], "teacher_sha256 is '0000"),
        ({"scope": "frame"}, [], "scope is 'frame' there and 'block' here"),
        ({"compression": (4, 4, 4)}, [], r"compression is \(4, 4, 4\) there and \(4, 2, 2\) here"),
        ({"mean": (0.1, 0.5, 0.5)}, [], r"mean is \(0.1, 0.5, 0.5\)"),
        ({"std": (0.1, 0.5, 0.5)}, [], r"std is \(0.1, 0.5, 0.5\)"),
        ({"resize": "crop"}, [], "resize is 'crop' there and 'squash' here"),
        ({}, ["--data.size", 32, "--model.student.image_size", 32], r"size is \(64, 64\) there and \(32, 32\) here"),
        ({}, ["--model.student.clip_frames", 4], "clip_frames is 8 there and 4 here"),
        ({}, ["--data.min_fps", 8], "min_fps is 4.0 there and 8.0 here"),
        ({}, ["--data.augment.flip", 0.0], "flip is 0.5 there and 0.0 here"),
        ({}, ["--data.augment.crop_area", "[0.5,1.0]"], r"crop_area is \(0.6, 1.0\)"),
        ({}, ["--data.val_fraction", 0.5], "train_videos is 4 there.*train_list.*val_list"),
        ({"train_list": "other"}, [], "train_list is 'other'"),
        ({}, ["--model.target.statistics_clips", 8], "statistics_clips is 4 there and 8 here"),
    ],
)
def test_cache_of_another_run_is_refused(live, use, tiny_config, tmp_path, settings, arguments, words):
    use(live[2].changed(lambda key, clip: clip, **settings))
    with pytest.raises(ValueError, match=rf"(?s)--data.cache CACHE.*{words}.*liteframe cache build"):
        train(tiny_config, tmp_path / "run", "--data.cache", "CACHE", *arguments)


def test_another_seed_orders_the_same_views(live, use, tiny_config, tmp_path, monkeypatch):
    cache = live[2]
    use(cache)
    orders = []
    for seed in (3, 4):
        seen = []
        keep = lambda self, batch, batch_idx, seen=seen: seen.append(batch)  # noqa: E731
        monkeypatch.setattr(CTDModule, "on_train_batch_start", keep)
        words = ["--seed_everything", seed, "--trainer.max_steps", 2, "--trainer.limit_val_batches", 0]
        train(tiny_config, tmp_path / str(seed), "--data.cache", "CACHE", *words)
        orders.append([key for batch in seen for key in batch.keys])
        for batch in seen:
            for key, target in zip(batch.keys, batch.targets, strict=True):
                assert torch.equal(target, cache.clips["train", *key].target)
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == [(0, index) for index in range(4)]


def test_no_cache_there(tiny_config, tmp_path):
    with pytest.raises(ValueError, match=r"none is not a target cache.*liteframe cache build"):
        train(tiny_config, tmp_path / "run", "--data.cache", tmp_path / "none")


def test_videos_that_failed_when_the_cache_was_built_count(live, use, tiny_config, tmp_path):
    def fail(key, clip):
        return VideoError(clip.view.video, "truncated", "the file ends early") if key[::2] == ("train", 2) else clip

    cache = live[2].changed(fail)
    use(cache)
    with pytest.raises(SystemExit, match=r"could not be read.*max_failure_rate is 5%"):
        train(tiny_config, tmp_path / "run", "--data.cache", "CACHE")
    report = train(tiny_config, tmp_path / "more", "--data.cache", "CACHE", "--data.max_failure_rate", 0.5)
    assert report["data"]["kinds"] == {"truncated": report["data"]["clips_failed"]}
    assert 3 <= report["data"]["clips_failed"] <= 4
    rows = [json.loads(line) for line in (tmp_path / "more" / "bad_videos.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["reason"]) for row in rows] == [("truncated", "the file ends early")]


def test_stopped_and_resumed_from_the_cache(live, use, tiny_config, tmp_path, monkeypatch):
    """In the middle of the second epoch; the straight run is the live one, for the targets are its own."""
    run, _, cache = live
    use(cache)
    target, step = tmp_path / "run", CTDModule.training_step

    def stop(self, batch, batch_idx):
        if self.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(CTDModule, "training_step", stop)
        with pytest.raises(SystemExit):
            train(tiny_config, target, "--data.cache", "CACHE")
    with pytest.raises(ValueError, match=r"data.cache was \w+ and is None.*--init_from"):
        train(tiny_config, target, "--resume", "--data.cache", "null")
    use(cache.changed(lambda key, clip: clip, codec="int8"))
    with pytest.raises(ValueError, match=r"data.cache was \w+ and is \w{16}"):
        train(tiny_config, target, "--resume", "--data.cache", "CACHE")
    use(cache)
    train(tiny_config, target, "--resume")  # from the run's own
    assert same(weights(run), weights(target))
