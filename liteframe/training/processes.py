"""How a run is spread over processes: what torchrun has started, which strategies train the same, and a common end."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

import liteframe.training.sharded  # registers fsdp2

SHARDED = ("fsdp2", liteframe.training.sharded.ShardedStrategy.__name__)
WHOLE = ("auto", "ddp", "DDPStrategy", "SingleDeviceStrategy")


def check_strategy(strategy: Any, *, shardable: bool) -> None:
    """Refuse strategies under which the loss, the checkpoints or the saved weights would not be those of one process.

    Args:
        strategy: `trainer.strategy` as configured: a name, or a class path with arguments.
        shardable: whether the run can divide its weights over the devices.

    Raises:
        ValueError: it is another one.
    """
    name = strategy if isinstance(strategy, str) else strategy.class_path.rsplit(".", 1)[-1]
    if name in WHOLE or (shardable and name in SHARDED):
        return
    if name in SHARDED:
        raise ValueError(f"--trainer.strategy {name} divides a CTD student; LMA trains few weights: use ddp")
    sharded = ", or fsdp2 (weights and optimizer state divided over all devices)" if shardable else ""
    raise ValueError(f"--trainer.strategy {name} is not supported; use ddp (whole weights on each device){sharded}")


def torchrun_devices(trainer: dict[str, Any]) -> dict[str, int]:
    """Devices and nodes as torchrun has started them, where the configuration leaves them open; empty without it."""
    if not TorchElasticEnvironment.detect():
        return {}
    found = {"devices": int(os.environ["LOCAL_WORLD_SIZE"]), "num_nodes": int(os.environ["GROUP_WORLD_SIZE"])}
    return {key: value for key, value in found.items() if trainer.get(key) in (None, "auto", 1)}


@contextmanager
def common_end(trainer: Trainer) -> Iterator[None]:
    """After an error, ends the processes that this one has started: they may be waiting for it in a collective.

    The other direction is Lightning's: a child that fails ends all. Under torchrun and SLURM it is theirs.
    """
    try:
        yield
    except BaseException as error:
        launcher = getattr(trainer.strategy, "launcher", None)
        if isinstance(error, Exception) and isinstance(launcher, _SubprocessScriptLauncher):
            launcher.kill(signal.SIGKILL)
        raise
