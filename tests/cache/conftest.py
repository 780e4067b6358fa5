"""A tiny teacher, nine videos of which one is broken, and a way to build caches of them in this process."""

import pytest
from lightning.fabric import Fabric
from worlds.cache import make_world

from liteframe.distill.cache import TargetCache
from liteframe.distill.cache.builder import CacheOptions, builder_of_run
from liteframe.distill.command import CTDCommand
from liteframe.training.cache.build import build_cache
from liteframe.training.command import load_run


@pytest.fixture(scope="session")
def cache_yaml(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("cache_world"))


@pytest.fixture(scope="session")
def build(cache_yaml):
    """Build a cache and open it; settings of the run can be changed by words of its command line."""

    def make(folder, *words, say=lambda message: None, **options):
        run = load_run(CTDCommand, ["--config", str(cache_yaml), *map(str, words)])
        builder = builder_of_run(run, CacheOptions(**options), Fabric(accelerator="cpu", devices=1))
        build_cache(builder, folder, say=say, advance=lambda *progress: None)
        return TargetCache.open(folder)

    return make


@pytest.fixture(scope="session")
def small_cache(build, tmp_path_factory):
    """Two views in shards of two clips, with frames; tests that change files must copy it."""
    return build(tmp_path_factory.mktemp("caches") / "small", views=2, codec="int8", jpeg_quality=90, shard_clips=2)
