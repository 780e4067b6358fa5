"""How a run is spread over processes: what torchrun has started, and which strategies give the same training."""

import os
from typing import Any

from lightning.fabric.plugins.environments import TorchElasticEnvironment

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
