from types import SimpleNamespace

import pytest
import torch
from worlds.ctd import write_video

from liteframe.data.preprocess import FrameFormat
from liteframe.distill.datamodule import ClipDataModule
from liteframe.training.schedule import divide_batch

FORMAT = FrameFormat((32, 32), (0.5,) * 3, (0.5,) * 3, "squash")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos")
    for number in range(4):
        write_video(path / f"{number}.mp4", frames=20, size=32, seed=number)
    return path


def made(folder, step=0, **kwargs):
    kwargs = {"batch_size": 2, "workers": 0, **kwargs}
    data = ClipDataModule(str(folder), FORMAT, val_fraction=0.01, clip_frames=4, **kwargs)
    data.trainer = SimpleNamespace(
        world_size=1,
        global_rank=0,
        global_step=step,
        accumulate_grad_batches=1,
        default_root_dir=str(folder / "run"),
    )
    data.setup("fit")
    return data


def test_workers_change_nothing(folder):
    alone, helped = (list(made(folder, workers=workers).train_dataloader()) for workers in (0, 2))
    assert [batch.paths for batch in alone] == [batch.paths for batch in helped]
    assert all(torch.equal(one.frames, two.frames) for one, two in zip(alone, helped, strict=True))
    assert len(alone) == 2


def test_resumed_loader_starts_where_the_run_stopped(folder):
    two_epochs = [*made(folder).train_dataloader(), *made(folder, step=2).train_dataloader()]
    later = list(made(folder, step=1).train_dataloader())
    assert [batch.paths for batch in later] == [two_epochs[1].paths]
    assert torch.equal(later[0].frames, two_epochs[1].frames)
    assert not torch.equal(two_epochs[0].frames, two_epochs[2].frames)


def test_loading_leaves_the_global_generator_alone(folder):
    before = torch.random.get_rng_state()
    list(made(folder, workers=1).train_dataloader())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_held_out_videos_are_not_trained_on(folder):
    data = made(folder)
    trained = {path for batch in data.train_dataloader() for path in batch.paths}
    held = {path for batch in data.val_dataloader() for path in batch.paths}
    assert len(trained) == 3
    assert len(held) == 1
    assert not trained & held
    assert made(folder, val_videos=str(folder)).train_entries == made(folder, val_videos=str(folder)).val_entries


def test_state_names_what_changed(folder):
    state = made(folder).state_dict()
    made(folder).load_state_dict(state)
    with pytest.raises(ValueError, match=r"data.videos was a list of 3 for training \(\w+\) and is a list of 4"):
        made(folder, val_videos=str(folder)).load_state_dict(state)


@pytest.mark.parametrize(
    ("batch", "micro", "devices", "expected"), [(16, None, 1, (16, 1)), (16, 4, 2, (4, 2)), (64, None, 8, (8, 1))]
)
def test_global_batch_size(batch, micro, devices, expected):
    assert divide_batch(batch, micro, devices) == expected


def test_global_batch_size_that_does_not_divide():
    with pytest.raises(ValueError, match=r"batch_size=10 is not a multiple.*4 times 2 devices.*fits is 8"):
        divide_batch(10, 4, 2)
    with pytest.raises(ValueError, match="batch_size=0"):
        ClipDataModule("videos", FORMAT, batch_size=0)
