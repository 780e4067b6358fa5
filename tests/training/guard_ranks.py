"""One of two ranks: a line is fitted; rank 1 meets a NaN in steps 2 and 4.

Usage: guard_ranks.py FOLDER STRATEGY ..., with torchrun's variables in the environment; a run's folder is named after
its strategy.
"""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor, nn

from liteframe.training.guard import GuardSettings, TrainingDivergedError
from liteframe.training.guarded_module import GuardedModule
from liteframe.training.sharded import full_tensor, shard


class Batch(NamedTuple):
    x: Tensor
    keys: list


class Data(LightningDataModule):
    tally = SimpleNamespace(rate=0.0)

    def train_dataloader(self):
        batches = [Batch(torch.full((2, 3), 1.0 + step), [(0, step)]) for step in range(6)]
        if self.trainer.global_rank == 1:
            for step in (2, 4):
                batches[step].x[0, 0] = math.nan
        return torch.utils.data.DataLoader(batches, batch_size=None)


class Line(GuardedModule):
    def __init__(self):
        super().__init__(GuardSettings(max_skipped=1))
        self.layer = nn.Linear(3, 1)
        self.history = []

    def data(self):
        return self.trainer.datamodule

    def step_loss(self, batch):
        prediction = self.layer(batch.x)
        return prediction.square().mean(), {"frames": batch.x, "prediction": prediction}

    def clips(self, batch):
        return [{"key": key, "path": f"{self.global_rank}.mp4"} for key in batch.keys]

    def configure_model(self):
        shard(self.trainer, self.layer, nn.ModuleList())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.5)

    def on_train_batch_end(self, *_):
        self.history.append([full_tensor(p).flatten().tolist() for p in self.layer.parameters()])


def main(run: Path, strategy: str) -> None:
    torch.manual_seed(0)
    module, stopped = Line(), None
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy=strategy, max_steps=6, default_root_dir=run, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    try:
        trainer.fit(module, datamodule=Data())
    except TrainingDivergedError as error:
        stopped = str(error)
    result = {"history": module.history, "skipped": module.guard.skipped, "stopped": stopped}
    (run / f"rank{trainer.global_rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    for name in sys.argv[2:]:
        main(Path(sys.argv[1]) / name, name)
