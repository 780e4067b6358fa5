"""Tiny worlds for runs of two processes."""

import json

import pytest
import torch
from ctd_world import make_vlm_folder, write_video
from distributed_world import ROOT

from liteframe.data.sampler import ClipStream
from liteframe.models.student import LiteFrameEncoder
from liteframe.models.student_config import LiteFrameConfig
from liteframe.toyworld.dataset import write_toyworld
from liteframe.toyworld.model import build_model, build_processor, build_tokenizer

CTD = """
seed_everything: 3
run: overridden
model:
  teacher: {{name: "{vlm}"}}
  student: {{dim: 16, depth: 2, heads: 2, mlp_dim: 32, patch_size: 8, image_size: 64, teacher_dim: 32,
            downsample: {{1: [2, 2, 2], 2: [2, 1, 1]}}, clip_frames: 8}}
  target: {{statistics_clips: 6}}
  optimizer: {{lr: 1.0e-3, warmup_steps: 2}}
data: {{videos: "{videos}", val_videos: "{held_out}", batch_size: 4, workers: 0, min_fps: 4, max_failure_rate: 1}}
trainer: {{max_steps: 6, val_check_interval: 3, accelerator: cpu, log_every_n_steps: 1}}
checkpoint: {{every_n_steps: 2}}
panel: {{every_n_steps: 3}}
ema: {{decay: 0.9}}
"""


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """`mixed`: nine videos, one of them broken; `held_out`: three; `one_rank`: every second clip of a stream broken."""
    root = tmp_path_factory.mktemp("videos")
    for folder in ("mixed", "held_out", "one_rank", "one_rank_held_out"):
        (root / folder).mkdir()
    for number in range(9):
        write_video(root / "mixed" / f"clip{number}.mp4", frames=24 if number else 9, seed=number)
    good = {number: (root / "mixed" / f"clip{number}.mp4").read_bytes() for number in range(9)}
    (root / "mixed" / "clip4.mp4").write_bytes(good[4][:700])
    for number in range(3):
        write_video(root / "held_out" / f"clip{number}.mp4", seed=20 + number)
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
    path = folder / "ctd.yaml"
    path.write_text(CTD.format(vlm=vlm, videos=videos / "mixed", held_out=videos / "held_out"))
    return path


@pytest.fixture(scope="session")
def chat(tmp_path_factory):
    """Arguments of an LMA run: a random tiny InternVL, an encoder for it, videos of which one is broken."""
    folder = tmp_path_factory.mktemp("lma")
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    build_processor(tokenizer).save_pretrained(folder / "vlm")
    build_model(tokenizer).save_pretrained(folder / "vlm")
    shape = {"dim": 24, "depth": 2, "heads": 2, "patch_size": 8, "image_size": 64, "teacher_dim": 128}
    encoder = LiteFrameEncoder(LiteFrameConfig(**shape, downsample={1: (2, 2, 2), 2: (2, 1, 1)}, clip_frames=8))
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    encoder.save_pretrained(folder / "encoder")
    made = write_toyworld(folder / "toy", train=6, test=1, seed=3)
    rows = [json.loads(line) for line in made.train_rows.read_text().splitlines()]
    for number, row in enumerate(rows):  # answers of different lengths on the two ranks
        row["conversations"] = row["conversations"][: 2 + 2 * (number % 4)]
    made.train_rows.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made.train_rows.parent / rows[2]["video"]).write_bytes(b"")
    return [
        "--config", ROOT / "configs" / "lma" / "internvl3_8b.yaml", "--model.vlm", folder / "vlm",
        "--model.encoder", folder / "encoder", "--data.conversations", made.train_rows, "--data.frames", "[8]",
        "--data.workers", 0, "--data.batch_size", 4, "--data.max_failure_rate", 1, "--model.lora.dropout", 0,
        "--model.optimizer.lr", 1e-3, "--trainer.accelerator", "cpu", "--trainer.max_steps", 3,
        "--trainer.log_every_n_steps", 1,
    ]  # fmt: skip
