"""Does a run survive SIGKILL? Kills real processes at random moments and writes survival.json and survival.md.

python benchmarks/survival.py [--kills 20] [--save-kills 100] [--cache-kills 10] [--seed 0] [-o benchmarks/survival]
"""

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from survival_cache import kill_building
from survival_saves import kill_saves, save_plainly, save_safely
from survival_training import STEPS, Run, Setting, compare, finish, kill_once, write_world

from liteframe.training.report import environment

SETTINGS = tuple(Setting(workers, processes) for processes in (1, 2) for workers in (0, 2))


def kill_training(
    folder: Path, kills: int, seed: int, settings: tuple[Setting, ...] = SETTINGS
) -> list[dict[str, Any]]:
    """Kill runs of each setting `kills` times in all, and compare each with a run that was not killed."""
    config, rows = write_world(folder), []
    for number, setting in enumerate(settings):
        name = f"workers{setting.workers}_processes{setting.processes}"
        rng = random.Random(f"{seed} {name}")
        whole = Run(config, folder / f"{name}_whole", setting)
        finish(whole)
        share = (kills + number) // len(settings)
        moments: list[str] = []
        differences: list[str] = []
        while len(moments) < share:
            run = Run(config, folder / f"{name}_{len(moments)}", setting)
            while len(moments) < share and (moment := kill_once(run, rng, whole)) is not None:
                moments.append(moment)
                print(f"{name}: killed {moment}", flush=True)
            finish(run)
            differences += compare(run, whole)
        rows.append(
            {"workers": setting.workers, "processes": setting.processes, "kills": len(moments),
             "moments": moments, "differences": differences}
        )  # fmt: skip
    return rows


def markdown(result: dict[str, Any]) -> str:
    """The figures as a page."""
    lines = [
        "# Kills survived",
        "",
        f"Made by `python benchmarks/survival.py --kills {result['kills']} --save-kills {result['save_kills']} "
        f"--cache-kills {result['cache']['kills']} --seed {result['seed']}` on {result['date'][:10]}: "
        f"{result['device']}, {result['cores']} cores, "
        f"Python {result['python']}, torch {result['versions']['torch']}, lightning {result['versions']['lightning']}; "
        f"{result['seconds']:.0f} s.",
        "",
        "## Training",
        "",
        f"A CTD run of {STEPS} steps with a live teacher is killed with SIGKILL at random moments (start, statistics, "
        "steps, saves, validation), continued with `--resume auto` until it is done, and compared with a run that was "
        "not killed: weights, optimizer, schedule and generators bit for bit, and the clips of every step with their "
        "pixels. With two processes (gloo) half of the kills hit one process only.",
        "",
        "| workers | processes | kills | runs that differ | lost or doubled samples |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['workers']} | {row['processes']} | {row['kills']} | {len(row['differences'])} | "
        f"{row['differences'].count('samples')} |"
        for row in result["training"]
    ]
    lines += [
        "",
        "## Saving",
        "",
        f"A process saves checkpoints of {', '.join(map(str, result['saves'][0]['megabytes']))} MB in a loop and is "
        "killed at a random moment. *Unreadable*: a resumed run would find no whole checkpoint, or other tensors than "
        "those saved. *Lost*: it would find an older one than the last whose save had returned. "
        "`torch.save` over the same file stands beside it to show that the test can fail.",
        "",
        "| how | kills | unreadable | lost | temporary file left, removed at the next start |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['how']} | {row['kills']} | {row['unreadable']} | {row['lost']} | {row['left_over']} |"
        for row in result["saves"]
    ]
    cache = result["cache"]
    lines += [
        "",
        "## Building a target cache",
        "",
        f"{cache['kills']} kills while caches of {cache['shards']} shards (int8, with frames) were built: of "
        f"{cache['caches']} caches, {cache['differences']} differ in any byte from one that was built in one go.",
        "",
        "SIGKILL leaves the page cache alive: what is flushed before a rename, which matters when the power fails, is "
        "checked by a test, not by this page.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of training runs, over all settings")
    parser.add_argument("--save-kills", type=int, default=100)
    parser.add_argument("--cache-kills", type=int, default=10, help="while a target cache is built")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(""))
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        saves = [
            {"how": how, **kill_saves(Path(folder) / save.__name__, kills, options.seed, save)}
            for how, kills, save in (
                ("LiteFrame", options.save_kills, save_safely),
                ("torch.save", options.save_kills // 5, save_plainly),
            )
        ]
        cache = kill_building(Path(folder) / "cache", options.cache_kills, options.seed)
        training = kill_training(Path(folder) / "training", options.kills, options.seed)
    result = {
        "kills": options.kills, "save_kills": options.save_kills, "seed": options.seed, "training": training,
        "saves": saves, "cache": cache, "seconds": round(time.monotonic() - began, 1), "cores": os.cpu_count(),
        **environment(torch.device("cpu")),
        "command": "python benchmarks/survival.py",
    }  # fmt: skip
    options.output.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    options.output.with_suffix(".md").write_text(markdown(result))
    failed = (
        [row for row in training if row["differences"]]
        or saves[0]["unreadable"]
        or saves[0]["lost"]
        or cache["differences"]
    )
    raise SystemExit(f"not everything survived: {failed}" if failed else 0)


if __name__ == "__main__":
    main()
