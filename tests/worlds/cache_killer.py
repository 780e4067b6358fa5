"""Builds a cache again and again and kills the builder: python tests/worlds/cache_killer.py YAML FOLDER KILLS.

The builder is a fork of this process, so that imports and the teacher are paid once. It is killed with SIGKILL after a
random time, or just before or after the n-th rename, in turn. Prints a JSON line with the number of kills.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from lightning.fabric import Fabric

from liteframe.distill.cache.builder import CacheOptions, builder_of_run
from liteframe.distill.command import CTDCommand
from liteframe.training.cache.build import build_cache
from liteframe.training.command import load_run


def die_at_rename(number, *, after):
    """From here on, the `number`-th rename of this process is its last act, or what it dies before."""
    rename, left = os.replace, [number]

    def replace(source, target):
        left[0] -= 1
        if left[0] == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace


def forked(work):
    """Run `work` in a fork; returns the child."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return child


def main(yaml, folder, kills):
    torch.set_num_threads(1)
    options, fabric = CacheOptions(2, "int8", 90, 2), Fabric(accelerator="cpu", devices=1)
    builder = builder_of_run(load_run(CTDCommand, ["--config", yaml]), options, fabric)

    def build(place=folder):
        build_cache(builder, place, say=lambda message: None, advance=lambda *progress: None)

    begin = time.monotonic()
    assert os.waitpid(forked(lambda: build(folder.with_name("timed"))), 0)[1] == 0
    seconds, dice, killed = time.monotonic() - begin, random.Random(0), 0
    for number in range(kills):
        if number % 2:
            # One rename gets through each time, so that there is always a next one to die at.
            rename, after = dice.choice([(1, True), (2, False)])

            def work(rename=rename, after=after):
                die_at_rename(rename, after=after)
                build()

            child = forked(work)
        else:
            child = forked(build)
            time.sleep(dice.uniform(0.02, 0.15) * seconds)
            os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    unfinished = not (folder / "index.json").exists()
    build()
    print(json.dumps({"killed": killed, "unfinished": unfinished}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
