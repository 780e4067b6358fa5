"""A byte that changed, a video that changed, an index that lies: each is found and named."""

import json
import os
import pickle
import shutil

import pytest
from safetensors.torch import load, save
from worlds.ctd import write_video

from liteframe.cli.main import main
from liteframe.distill.cache import TargetCache
from liteframe.training.cache.settings import all_shards


@pytest.fixture
def copy(small_cache, tmp_path):
    return shutil.copytree(small_cache.folder, tmp_path / "copy")


def read_all(folder):
    cache = TargetCache.open(folder)
    cache.statistics  # noqa: B018
    return [cache.read(key.split, *clip) for key in all_shards(cache.settings) for clip in key.clips]


@pytest.mark.parametrize("name", ["train-000-00001.safetensors", "val-000-00000.safetensors", "statistics.safetensors"])
@pytest.mark.parametrize("place", [0.0, 0.4, 0.99])
def test_one_flipped_byte_is_found(copy, capsys, name, place):
    data = bytearray((copy / name).read_bytes())
    data[int(place * len(data))] ^= 1
    (copy / name).write_bytes(data)
    assert main(["cache", "verify", str(copy), "--sample", "0"]) == (1 if name != "settings.json" else 2)
    assert name in capsys.readouterr().err
    # A reader that meets it stops as well, and says what to do.
    with pytest.raises(ValueError, match=f"{name}.*(delete|copy)"):
        read_all(copy)


def test_no_byte_of_a_header_changes_what_is_read(copy):
    """Found, or of no consequence: a clip is what was written or an error."""
    path, written = copy / "val-000-00000.safetensors", TargetCache.open(copy).read("val", 0, 0)
    data, found = path.read_bytes(), 0
    header = 8 + int.from_bytes(data[:8], "little")
    for place in range(header):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            clip = TargetCache.open(copy).read("val", 0, 0)
        except ValueError:
            found += 1
        else:
            assert (clip.view, clip.target.tolist()) == (written.view, written.target.tolist())
            assert (clip.frames == written.frames).all()
    assert found > 0.95 * header


def test_settings_cannot_be_changed(copy):
    settings = json.loads((copy / "settings.json").read_text())
    (copy / "settings.json").write_text(json.dumps({**settings, "scope": "frame"}))
    with pytest.raises(ValueError, match="does not have the digest"):
        TargetCache.open(copy)
    (copy / "settings.json").write_text(json.dumps({**settings, "format": 1, "licence": None}))
    with pytest.raises(ValueError, match=r"format 1 and this version of LiteFrame reads 5.*build another"):
        TargetCache.open(copy)
    (copy / "settings.json").write_text(json.dumps({**settings, "codec": "fp8"}))
    with pytest.raises(ValueError, match="codec is 'fp8'; choose one of bf16, int8"):
        TargetCache.open(copy)
    (copy / "settings.json").write_text(json.dumps({**settings, "train_videos": 10**15}))
    with pytest.raises(ValueError, match="names 9 shards"):
        TargetCache.open(copy)
    (copy / "settings.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"settings\.json"):
        TargetCache.open(copy)


def test_a_changed_video_is_found(build, cache_yaml, tmp_path, capsys):
    videos = shutil.copytree(cache_yaml.parent / "videos", tmp_path / "videos")
    cache = build(tmp_path / "cache", "--data.videos", videos, views=1, codec="int8", jpeg_quality=90)
    changed = cache.read("train", 0, 3).view.video
    write_video(changed, seed=99)
    os.remove(cache.read("train", 0, 4).view.video)
    assert main(["cache", "verify", str(cache.folder), "--sample", "50"]) == 1
    printed = capsys.readouterr()
    assert "train video 3, view 0" in printed.err
    assert "standard deviations" in printed.err
    assert "train video 4, view 0: the video cannot be read again" in printed.err
    assert printed.err.count("view 0:") == 2


def test_another_teacher_is_refused(build, cache_yaml, tmp_path, capsys):
    teacher = shutil.copytree(cache_yaml.parent / "vlm", tmp_path / "vlm")
    cache = build(tmp_path / "cache", "--model.teacher.name", teacher, views=1)
    tensors = load((teacher / "model.safetensors").read_bytes())
    tensors = {name: tensor * (1.001 if "vision" in name else 1) for name, tensor in tensors.items()}
    (teacher / "model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
    assert main(["cache", "verify", str(cache.folder)]) == 2
    assert "does not have the weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda index: index["shards"].update({"../x": index["shards"]["val-000-00000"]}), r"\.\./x"),
        (lambda index: index["shards"].update({"/etc/passwd": {}}), "/etc/passwd"),
        (lambda index: index["shards"].pop("val-000-00000"), "names 8 shards and the settings give 9"),
        (lambda index: index["shards"].update(x=index["shards"].pop("val-000-00000")), "'val-000-00000', 'x'"),
        (lambda index: index["files"].update({"../settings.json": "0"}), "nothing else"),
        (lambda index: index["shards"]["val-000-00000"].update(clips=7), "settings give it 1 clips"),
        (lambda index: index["shards"]["val-000-00000"].update(file="../y"), "needs clips"),
        (lambda index: index["shards"]["val-000-00000"].update(bytes="9"), "needs clips"),
        (lambda index: index["shards"]["val-000-00000"].update(tables=["builtins", "eval"]), "needs clips"),
    ],
)
def test_hostile_index_is_refused(copy, change, words):
    index = json.loads((copy / "index.json").read_text())
    change(index)
    (copy / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"index\.json.*{words}"):
        TargetCache.open(copy)


def test_links_that_leave_the_folder_are_refused(copy, tmp_path):
    outside = shutil.move(copy / "val-000-00000.safetensors", tmp_path / "elsewhere")
    (copy / "val-000-00000.safetensors").symlink_to(outside)
    with pytest.raises(ValueError, match="outside of the cache"):
        TargetCache.open(copy).read("val", 0, 0)


def test_a_shard_that_is_a_pickle_is_not_opened(copy):
    class Trap:
        def __reduce__(self):
            return os.abort, ()

    name = "val-000-00000"
    trap = pickle.dumps(Trap())
    (copy / f"{name}.safetensors").write_bytes(trap)
    index = json.loads((copy / "index.json").read_text())
    index["shards"][name].update(bytes=len(trap))
    (copy / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="not a shard"):
        TargetCache.open(copy).read("val", 0, 0)


def test_clips_outside_are_errors(small_cache):
    for place in (("train", 2, 0), ("train", 0, 99), ("val", 1, 0), ("train", -1, 0)):
        with pytest.raises(IndexError, match="the cache holds"):
            small_cache.read(*place)


def test_a_cache_travels_to_workers(small_cache):
    small_cache.read("val", 0, 0)
    other = pickle.loads(pickle.dumps(small_cache))
    assert (other.read("train", 1, 1).target == small_cache.read("train", 1, 1).target).all()


def test_object_storage(small_cache, tmp_path, monkeypatch):
    """Any address that fsspec reads; shards are copied when they are used, and checked as ever."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = TargetCache.open(f"file://{small_cache.folder}")
    assert len(list(cache.folder.glob("*.safetensors"))) == 1
    clip = pickle.loads(pickle.dumps(cache)).read("train", 1, 1)
    assert (clip.target == small_cache.read("train", 1, 1).target).all()
    assert sorted(path.name for path in cache.folder.glob("train*")) == ["train-001-00000.safetensors"]
    data = bytearray((cache.folder / "train-001-00000.safetensors").read_bytes())
    (cache.folder / "train-001-00000.safetensors").write_bytes(data[:-1])
    with pytest.raises(ValueError, match=r"bytes and the index names.*fetched again"):
        TargetCache.open(f"file://{small_cache.folder}").read("train", 1, 1)
    for address in ("file:///nowhere", "nosuchprotocol://bucket/cache"):
        with pytest.raises(ValueError, match=address):
            TargetCache.open(address)
