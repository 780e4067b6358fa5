"""A target cache whose building is killed at random moments, compared with one that was built in one go."""

import hashlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from survival_training import write_world

from liteframe.distill.cache.builder import CacheBuilder, CacheOptions, builder_of_run
from liteframe.distill.command import CTDCommand
from liteframe.training.cache.build import build_cache
from liteframe.training.command import load_run

VIEWS, SHARD_CLIPS = 4, 3


def kill_building(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill the building of caches `kills` times in all; each is finished and compared, file by file."""
    config, rng = write_world(folder), random.Random(seed)
    options = CacheOptions(VIEWS, "int8", jpeg_quality=90, shard_clips=SHARD_CLIPS)
    run = load_run(CTDCommand, ["--config", str(config), "--data.workers", "2"])
    builder = builder_of_run(run, options, Fabric(accelerator="cpu", devices=1))
    began = time.monotonic()
    _finish(builder, folder / "whole")
    seconds, done, differences, caches = time.monotonic() - began, 0, 0, 0
    while done < kills:
        cache = folder / f"cache{caches}"
        while done < kills and not (cache / "index.json").exists():
            child = _fork(builder, cache)
            time.sleep(rng.uniform(0, 0.6 * seconds))
            os.kill(child, signal.SIGKILL)
            done += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        _finish(builder, cache)
        differences += _digests(cache) != _digests(folder / "whole")
        caches += 1
    return {"kills": done, "caches": caches, "shards": len(list((folder / "whole").rglob("*.safetensors"))),
            "differences": differences}  # fmt: skip


def _fork(builder: CacheBuilder, cache: Path) -> int:
    if child := os.fork():
        return child
    code = 1
    try:
        build_cache(builder, cache, say=lambda message: None, advance=lambda *progress: None)
        code = 0
    except (ValueError, OSError) as error:
        print(error, flush=True)
    finally:
        os._exit(code)


def _finish(builder: CacheBuilder, cache: Path) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(_fork(builder, cache), 0)[1])
    if code:
        raise RuntimeError(f"building {cache} ended with {code}")


def _digests(cache: Path) -> dict[str, str]:
    return {
        str(path.relative_to(cache)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in cache.rglob("*")
        if path.is_file() and path.name != ".lock"  # held while building
    }
