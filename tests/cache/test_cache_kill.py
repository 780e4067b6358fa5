"""Killed or without room on the disk: the cache ends as one that was built in peace, byte for byte."""

import json
import os
import resource
import sys

import pytest
from worlds import ROOT, forked
from worlds.cache import contents

from liteframe.training.cache.build import sole_builder

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_kills_at_random_points(small_cache, cache_yaml, tmp_path):
    killer = ROOT / "tests" / "worlds" / "cache_killer.py"
    command = [sys.executable, str(killer), str(cache_yaml), str(tmp_path / "cache"), "8"]
    done = forked.run(command, env=ENVIRONMENT, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["killed"] >= 4
    assert report["unfinished"]
    assert contents(tmp_path / "cache") == contents(small_cache.folder)


def test_a_full_disk_leaves_nothing_half_written(small_cache, build, tmp_path):
    """No file may grow beyond what the first two shards need."""
    folder = tmp_path / "cache"
    sizes = {name: len(data) for name, data in contents(small_cache.folder).items() if name.endswith("safetensors")}
    limit = min(size for name, size in sizes.items() if name.startswith("train"))
    assert limit > sizes["statistics.safetensors"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match=r"safetensors needs at least [\d,]+ bytes"):
            build(folder, views=2, codec="int8", jpeg_quality=90, shard_clips=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    left = contents(folder)
    assert not [name for name in left if name.endswith(".tmp")]
    assert "index.json" not in left
    whole = contents(small_cache.folder)
    assert all(left[name] == whole[name] for name in left)
    build(folder, views=2, codec="int8", jpeg_quality=90, shard_clips=2)
    assert contents(folder) == whole


def test_a_second_build_is_told_to_wait(build, tmp_path):
    with sole_builder(tmp_path / "cache"), pytest.raises(ValueError, match=r"another .*cache. command is writing"):
        build(tmp_path / "cache", views=1)
