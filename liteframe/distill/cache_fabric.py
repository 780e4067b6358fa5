"""The processes of a cache build."""

import os
from datetime import timedelta
from typing import Any

from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.fabric.strategies import DDPStrategy

from liteframe.training.command import automatic_precision

# Processes wait for each other twice, at the start and at the end, and one may have many more broken videos.
PATIENCE = timedelta(days=7)


def launch_fabric(trainer: Any) -> Fabric:
    """The processes that torchrun started, or one.

    Args:
        trainer: settings of the run's trainer; device and precision are taken from them.
    """
    precision: Any = trainer.precision or automatic_precision(trainer.accelerator)
    if not TorchElasticEnvironment.detect():
        return Fabric(accelerator=trainer.accelerator, devices=1, precision=precision)
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    fabric = Fabric(
        accelerator=trainer.accelerator,
        devices=local,
        num_nodes=int(os.environ["WORLD_SIZE"]) // local,
        # gloo on GPUs too: they exchange a list and two barriers, and NCCL's watchdog would not wait.
        strategy=DDPStrategy(process_group_backend="gloo", timeout=PATIENCE),
        precision=precision,
    )
    fabric.launch()
    return fabric
