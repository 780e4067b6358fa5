"""A cache of an encoder's tokens: a run from it is the live run, and another encoder, other frames or files are not."""

import json
import os
import resource
import shutil

import pytest
import torch
from lightning.fabric import Fabric
from safetensors.torch import load_file
from worlds.cache import contents
from worlds.ctd import write_video

from liteframe.align.command import LMACommand
from liteframe.align.tokens.builder import TokenOptions, builder_of_run
from liteframe.align.tokens.cache import TokenCache
from liteframe.cli.main import main
from liteframe.data.video.process import DecodeProcess
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.training.cache import build as cache_build
from liteframe.training.cache.build import build_cache
from liteframe.training.command import load_run

DRAWS = ("--data.frames", "[4,8]", "--data.fps", "[2,8]")
TURNS = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "red"}]
STEPS = ("--trainer.max_steps", "4")  # two epochs of four conversations


@pytest.fixture(scope="module")
def build(lma_world):
    """Build a token cache of the run of lma.yaml, by further words of its command line, and open it."""

    def make(folder, *words, **options):
        given = ["--config", lma_world / "lma.yaml", *DRAWS, *words]
        run = load_run(LMACommand, list(map(str, given)))
        builder = builder_of_run(run, TokenOptions(**options), Fabric(accelerator="cpu", devices=1))
        build_cache(builder, folder, say=lambda message: None, advance=lambda *progress: None)
        return TokenCache.open(folder)

    return make


@pytest.fixture(scope="module")
def cache(build, tmp_path_factory):
    """Two views of three videos in shards of two; tests that change files copy it."""
    return build(tmp_path_factory.mktemp("tokens") / "cache", views=2, shard_clips=2)


def adapter(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def report(folder):
    return json.loads((folder / "report.json").read_text())


def test_a_run_from_it_is_the_live_run_bit_for_bit(run, lma_world, cache, tmp_path, monkeypatch):
    """Without a video: in two epochs each view is shown once, and drawn otherwise than the first."""
    assert cache.settings.codec == "fp32"
    frames = [[cache.stored("media", view, place).facts["frames"] for place in range(3)] for view in range(2)]
    assert frames[0] != frames[1]
    words = ("fit", "--config", lma_world / "lma.yaml", *DRAWS, *STEPS)
    run(*words, "--run", tmp_path / "live")
    monkeypatch.setattr(DecodeProcess, "read", None)
    monkeypatch.setattr(DecodeProcess, "probe", None)
    run(*words, "--run", tmp_path / "cached", "--data.tokens", cache.folder)
    live, cached = adapter(tmp_path / "live"), adapter(tmp_path / "cached")
    assert any(live[name].abs().max() > 0 for name in live if "lora_B" in name)
    assert live.keys() == cached.keys()
    assert all(torch.equal(live[name], cached[name]) for name in live)
    figures = [report(tmp_path / name)["figures"] for name in ("live", "cached")]
    assert {n for n in figures[0] if figures[0][n] != figures[1][n]} <= {
        n for n in figures[0] if n.startswith("speed/")
    }
    assert report(tmp_path / "cached")["data"]["token_cache"] == str(cache.folder)
    with pytest.raises(ValueError, match=r"tokens change while the encoder is trained"):
        run(*words, "--run", tmp_path / "no", "--data.tokens", cache.folder, "--model.train_encoder", "true")


def test_lengths_are_those_of_the_view_that_is_shown(lma_world, cache):
    """Two views of draws that differ: the third epoch is as long as the first, whatever the seed of the run."""
    words = ["--config", lma_world / "lma.yaml", *DRAWS, "--data.tokens", cache.folder, "--seed_everything", "5"]
    data = load_run(LMACommand, list(map(str, words))).data.dataset()
    lengths = [[data.length((epoch, index)) for index in range(3)] for epoch in range(4)]
    assert lengths[:2] == lengths[2:]
    assert lengths[0] != lengths[1]


def test_a_projector_may_be_trained_on_it(run, lma_world, cache, tmp_path):
    """Live, the encoder runs with gradients on, where convolutions add in another order."""
    words = ("fit", "--config", lma_world / "lma.yaml", *DRAWS, "--model.train_projector", "true")
    for name, more in (("live", ()), ("cached", ("--data.tokens", cache.folder))):
        run(*words, *more, "--run", tmp_path / name)
    live, cached = adapter(tmp_path / "live"), adapter(tmp_path / "cached")
    assert any("projector" in name for name in live)
    for name in live:
        torch.testing.assert_close(cached[name], live[name], rtol=1e-4, atol=1e-5)


def test_preferences_read_the_same_cache(lma_world, cache, tmp_path, capsys):
    """Other rows about the same videos, in another order."""
    rows = lma_world / "pairs_of_tokens.jsonl"
    said = {"question": "What colour?", "chosen": "red", "rejected": "blue"}
    rows.write_text("".join(json.dumps({**said, "video": f"{number}.mp4"}) + "\n" for number in (2, 0, 0)))
    words = [
        "prefer", "fit", "--config", "toy", "--model.vlm", lma_world / "vlm", "--model.encoder", lma_world / "encoder",
        "--model.init_adapter", "null", "--data.pairs", rows, *DRAWS, "--data.batch_size", "2",
        "--data.micro_batch_size", "1", "--data.cache_features", "false", "--trainer.max_steps", "2",
        "--trainer.accelerator", "cpu",
    ]  # fmt: skip
    for name, more in (("live", ()), ("cached", ("--data.tokens", cache.folder))):
        assert main([str(word) for word in (*words, "--run", tmp_path / name, *more)]) == 0
    live, cached = adapter(tmp_path / "live"), adapter(tmp_path / "cached")
    assert all(torch.equal(live[name], cached[name]) for name in live)


def test_what_was_killed_goes_on(build, cache, tmp_path, monkeypatch):
    """In the middle of the second shard, and once more before the index."""
    written, replace = [], os.replace

    def dies(source, target):
        written.append(target)
        if len(written) in (4, 8):  # settings and list before the shards
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(cache_build.os, "replace", dies)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "cache", views=2, shard_clips=2)
        assert not (tmp_path / "cache" / "index.json").exists()
    build(tmp_path / "cache", views=2, shard_clips=2)
    assert contents(tmp_path / "cache") == contents(cache.folder)
    with pytest.raises(ValueError, match=r"views is 2 there and 1 here"):
        build(tmp_path / "cache", views=1, shard_clips=2)


def test_a_full_disk_leaves_nothing_half_written(build, cache, tmp_path, monkeypatch):
    sizes = [info.bytes for info in cache.index.shards.values()]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (min(sizes) - 1, before[1]))
    try:
        with pytest.raises(OSError, match=r"safetensors needs at least [\d,]+ bytes"):
            build(tmp_path / "cache", views=2, shard_clips=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [name for name in contents(tmp_path / "cache") if name.endswith((".tmp", "index.json"))]
    build(tmp_path / "cache", views=2, shard_clips=2)
    assert contents(tmp_path / "cache") == contents(cache.folder)
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(ValueError, match=r"1 kB free, the cache needs .* kB"):
        build(tmp_path / "other", views=2)
    assert not (tmp_path / "other").exists()


@pytest.fixture
def cached_run(run, lma_world, cache, tmp_path):
    def start(*words, tokens=cache.folder):
        folder = tmp_path / f"run_{len(list(tmp_path.glob('run_*')))}"
        given = ("fit", "--config", lma_world / "lma.yaml", "--run", folder, "--data.tokens", tokens)
        run(*given, *DRAWS, *words)

    return start


def test_other_frames_and_another_encoder_are_named(cached_run, lma_world, tmp_path):
    with pytest.raises(ValueError, match=r"frames is \(4, 8\) there and \(4,\) here; fps is \(2.0, 8.0\) there"):
        cached_run("--data.frames", "[4]", "--data.fps", "[2,4]")
    encoder = LiteFrameEncoder.from_pretrained(lma_world / "encoder")
    with torch.no_grad():
        encoder.head.bias.add_(1e-3)
    encoder.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"holds other tokens: encoder_sha256 is '\w+' there and '\w+' here\. Take"):
        cached_run("--model.encoder", tmp_path / "other")


def test_files_that_it_lacks_are_named(lma_world, cache, tmp_path):
    """A data set that has moved, or is gone, is the same; a file that has changed is not."""
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("0.mp4", "1.mp4", "2.mp4", "rows.jsonl"):
        shutil.copy(lma_world / name, moved)

    def shown():
        words = ["--config", str(lma_world / "lma.yaml"), "--data.conversations", str(moved / "rows.jsonl")]
        data = load_run(LMACommand, [*words, "--data.tokens", str(cache.folder)]).data
        return data.media.load(3, data.conversations[2].media[0], 1).grid

    stored = cache.stored("media", 1, 2).encoded["tokens"]
    assert torch.equal(shown(), stored)
    (moved / "2.mp4").unlink()
    assert torch.equal(shown(), stored)
    write_video(moved / "2.mp4", frames=30, fps=8, seed=9)
    with pytest.raises(ValueError, match=r"lacks 1 of .*\n.*2\.mp4 has [\d,]+ bytes, and the file .* had [\d,]+ when"):
        shown()
    with (moved / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"video": "3.mp4", "conversations": TURNS}) + "\n")
    with pytest.raises(ValueError, match=r"lacks 2 of (.|\n)*3\.mp4 is not in the cache"):
        shown()


def test_damage_is_found_and_named(cached_run, cache, tmp_path, capsys):
    folder = shutil.copytree(cache.folder, tmp_path / "copy")
    assert main(["cache", "verify", str(folder), "--sample", "2"]) == 0
    assert "2 clips compared" in capsys.readouterr().out
    assert main(["cache", "info", str(folder)]) == 0
    assert "token cache, finished" in (shown := capsys.readouterr().out)
    assert "2 of 2 views of 3 videos" in shown
    shard = folder / "media-000-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-300] ^= 1
    shard.write_bytes(data)
    assert main(["cache", "verify", str(folder), "--sample", "0"]) == 1
    assert shard.name in capsys.readouterr().err
    with pytest.raises(ValueError, match=rf"{shard.name}.*liteframe cache tokens.*makes only what is missing"):
        cached_run(*STEPS, tokens=folder)
    (folder / "media.jsonl").write_text("")
    with pytest.raises(SystemExit, match=r"media\.jsonl does not have the digest"):
        cached_run(tokens=folder)


def test_a_video_that_was_bad_is_a_failure(build, run, lma_world, tmp_path):
    shutil.copy(lma_world / "0.mp4", tmp_path)
    (tmp_path / "bad.mp4").write_bytes((lma_world / "1.mp4").read_bytes()[:900])
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"video": v, "conversations": TURNS}) + "\n" for v in ("0.mp4", "bad.mp4")))
    words = ("--data.conversations", rows, "--data.max_failure_rate", "0.9")
    held = build(tmp_path / "cache", *words, views=1)
    for name in ("0.mp4", "bad.mp4"):
        (tmp_path / name).unlink()
    given = ("fit", "--config", lma_world / "lma.yaml", *DRAWS, *words, "--data.tokens", held.folder)
    run(*given, "--run", tmp_path / "run", "--trainer.max_steps", "1")
    assert report(tmp_path / "run")["data"]["clips_failed"] == 1


def test_the_command_builds_it_for_either_kind_of_run(lma_world, cache, tmp_path, capsys):
    words = ["cache", "tokens", "--config", str(lma_world / "lma.yaml"), "-o", str(tmp_path / "cache"), "--views", "1"]
    assert main([*words, *DRAWS, "--codec", "bf16"]) == 0
    shown = capsys.readouterr()
    assert "3 videos and images x 1 views" in shown.err
    assert f"--data.tokens {tmp_path / 'cache'} trains from it" in shown.out
    half = TokenCache.open(tmp_path / "cache").stored("media", 0, 1).encoded["tokens"]
    assert torch.equal(half, cache.stored("media", 0, 1).encoded["tokens"].bfloat16())
    pairs = lma_world / "pairs_of_a_cache.jsonl"
    pairs.write_text(json.dumps({"video": "1.mp4", "question": "What?", "chosen": "red", "rejected": "blue"}) + "\n")
    words = ["cache", "tokens", "--config", "prefer/toy", "-o", str(tmp_path / "pairs"), "--views", "1", *DRAWS]
    words += ["--model.vlm", str(lma_world / "vlm"), "--model.encoder", str(lma_world / "encoder")]
    assert main([*words, "--data.pairs", str(pairs)]) == 0
    same = TokenCache.open(tmp_path / "pairs").stored("media", 0, 0)
    assert torch.equal(same.encoded["tokens"], cache.stored("media", 0, 1).encoded["tokens"])
