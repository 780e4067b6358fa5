"""Tiny worlds for runs of two processes."""

import json

import pytest
from worlds import ROOT
from worlds.ctd import make_vlm_folder, write_ctd_config, write_video
from worlds.lma import make_chats

from liteframe.data.stream import ClipStream


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """`mixed`: nine videos, one of them broken; `held_out`: three; `one_rank`: every second clip of a stream broken."""
    root = tmp_path_factory.mktemp("videos")
    for folder in ("mixed", "held_out", "one_rank", "one_rank_held_out"):
        (root / folder).mkdir()
    shapes = {5: (36, 86), 6: (36, 86), 7: (96, 54)}  # a film's and a phone's, which one of the runs keeps
    for number in range(9):
        frames, size = 24 if number else 9, shapes.get(number, 64)
        write_video(root / "mixed" / f"clip{number}.mp4", frames=frames, size=size, seed=number)
    good = {number: (root / "mixed" / f"clip{number}.mp4").read_bytes() for number in range(9)}
    (root / "mixed" / "clip4.mp4").write_bytes(good[4][:700])
    for number in range(3):
        write_video(root / "held_out" / f"clip{number}.mp4", size=shapes.get(number + 5, 64), seed=20 + number)
        (root / "one_rank_held_out" / f"clip{number}.mp4").write_bytes(good[5 + number])
    (root / "one_rank_held_out" / "clip1.mp4").write_bytes(b"")
    stream = ClipStream(8, 1, 4, seed=3, rank=1, world_size=2)
    of_second_rank = {index for batch in stream for _, index in batch}
    assert len(of_second_rank) == 4
    for number in range(8):
        (root / "one_rank" / f"clip{number}.mp4").write_bytes(b"" if number in of_second_rank else good[number + 1])
    (root / "one_rank" / f"clip{min(of_second_rank)}.mp4").write_bytes(good[1][:700])
    return root


@pytest.fixture(scope="session")
def config(videos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ctd")
    vlm = make_vlm_folder(folder / "vlm")
    return write_ctd_config(
        folder / "ctd.yaml",
        vlm,
        videos / "mixed",
        model={"target": {"statistics_clips": 6}},
        data={"val_videos": str(videos / "held_out"), "batch_size": 4, "max_failure_rate": 1},
        trainer={"max_steps": 6},
        ema={"decay": 0.9},
    )


@pytest.fixture(scope="session")
def chat(tmp_path_factory):
    """Arguments of an LMA run: a random tiny InternVL, an encoder for it, videos of which one is broken."""
    folder = tmp_path_factory.mktemp("lma")
    chats = make_chats(folder)  # answers of different lengths on the two ranks
    broken = json.loads(chats.read_text().splitlines()[2])
    (chats.parent / broken["video"]).write_bytes(b"")
    return [
        "--config", ROOT / "configs" / "lma" / "internvl3_8b.yaml", "--model.vlm", folder / "vlm",
        "--model.encoder", folder / "encoder", "--data.conversations", chats, "--data.frames", "[8]",
        "--data.workers", 0, "--data.batch_size", 4, "--data.max_failure_rate", 1, "--model.lora.dropout", 0,
        "--model.optimizer.lr", 1e-3, "--trainer.accelerator", "cpu", "--trainer.max_steps", 3,
        "--trainer.log_every_n_steps", 1,
    ]  # fmt: skip
