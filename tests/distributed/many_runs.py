"""A process of several training runs, one after the other, so that its start is paid for once.

    torchrun --nproc_per_node 2 tests/distributed/many_runs.py PLAN.json

PLAN is a list of {"program": "ctd", "lma" or "liteframe", "arguments": [...], "stop": [rank, step], "raise": [rank,
step]}: `stop` sends a rank SIGTERM in that step, `raise` lets it fail. What run i ended with on rank r goes to
PLAN.<i>.<r>.json.
"""

import json
import os
import signal
import sys
from pathlib import Path

import liteframe.distill.command
from liteframe.align.command import LMACommand
from liteframe.cli.main import main as liteframe_main
from liteframe.distill.command import CTDCommand
from liteframe.distill.module import CTDModule
from liteframe.training.exit_codes import exit_codes


class InterferedModule(CTDModule):
    """Something happens to one rank."""

    run: dict = {}

    def on_train_batch_start(self, batch, batch_idx):
        super().on_train_batch_start(batch, batch_idx)
        here = [self.global_rank, self.global_step]
        if self.run.get("stop") == here:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.run.get("raise") == here:
            raise RuntimeError(f"rank {self.global_rank} breaks on purpose")


def main():
    path = Path(sys.argv[1])
    liteframe.distill.command.CTDModule = InterferedModule
    for number, run in enumerate(json.loads(path.read_text())):
        InterferedModule.run = run
        code = 0
        try:
            with exit_codes("train"):
                if run["program"] == "liteframe":
                    code = liteframe_main(run["arguments"])
                else:
                    {"ctd": CTDCommand, "lma": LMACommand}[run["program"]](["fit", *run["arguments"]])
        except SystemExit as error:
            code = error.code
        rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
        path.with_suffix(f".{number}.{rank}.json").write_text(json.dumps(code))


if __name__ == "__main__":
    main()
