"""A tiny teacher, a few tiny videos, and a way to run train_ctd.py's entry point."""

import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from worlds.ctd import make_vlm_folder, write_ctd_config, write_video

import train_ctd
from liteframe.distill.cache import CachedClip
from liteframe.distill.module import CTDModule


@pytest.fixture(scope="session")
def vlm_folder(tmp_path_factory):
    return make_vlm_folder(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number in range(5):
        write_video(folder / f"clip{number}.mp4", frames=24 if number else 9, seed=number)
    return folder


@pytest.fixture(scope="session")
def tiny_config(vlm_folder, video_folder, tmp_path_factory):
    """A configuration file of a run of a second."""
    return write_ctd_config(tmp_path_factory.mktemp("config") / "tiny.yaml", vlm_folder, video_folder)


def watch(patch):
    """Paths and pixels of every training batch, in order, and what all generators give."""
    record = []
    original = CTDModule.training_step

    def step(self, batch, batch_idx):
        drawn = torch.rand(1).item(), np.random.standard_normal(), random.gauss(0, 1)
        record.append((self.global_step, tuple(batch.paths), batch.video.double().sum().item(), drawn))
        return original(self, batch, batch_idx)

    patch.setattr(CTDModule, "training_step", step)
    return record


@pytest.fixture(name="watch", scope="session")
def _watch():
    return watch


@pytest.fixture(scope="session")
def seven_steps(tiny_config, tmp_path_factory):
    """A run that nobody stopped: folder, batches, module, measured statistics and all its targets, clip by clip."""
    kept = SimpleNamespace(run=tmp_path_factory.mktemp("seven_steps") / "run", clips={})
    pooled_target, measure = CTDModule.pooled_target, CTDModule.measure_statistics

    def write_down(self, batch, **asked):
        pooled = pooled_target(self, batch, **asked)
        kept.module, data = self, self.data()
        part = "val" if batch.paths[0] in {entry.video for entry in data.val_entries} else "train"
        source = data.val_clips() if part == "val" else data.train_clips()
        for (epoch, index), target in zip(batch.keys, pooled.tokens, strict=True):
            # The panel asks again, for one clip alone, which rounds differently.
            kept.clips.setdefault((part, epoch, index), CachedClip(source.view((epoch, index)), target.clone(), None))
        return pooled

    def keep_statistics(self):
        kept.statistics = measure(self)
        return kept.statistics

    with pytest.MonkeyPatch.context() as patch:
        kept.batches = watch(patch)
        patch.setattr(CTDModule, "pooled_target", write_down)
        patch.setattr(CTDModule, "measure_statistics", keep_statistics)
        patch.setattr(sys, "argv", ["train_ctd.py", "fit", "--config", str(tiny_config), "--run", str(kept.run)])
        train_ctd.main()
    return kept


@pytest.fixture
def fit(monkeypatch, tiny_config):
    """Run `train_ctd.py fit ...` in this process."""

    def run(*arguments, config=tiny_config):
        monkeypatch.setattr(sys, "argv", ["train_ctd.py", "fit", "--config", str(config), *map(str, arguments)])
        train_ctd.main()

    return run
