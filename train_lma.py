"""Language model alignment: train LoRA on the language model of a Video LLM that has a LiteFrame encoder.

python train_lma.py fit --config configs/lma/<run>.yaml [--data.conversations rows.jsonl] [--run DIR] [...]
python train_lma.py stages --config configs/lma/stages/<stages>.yaml [...]
"""

import sys

from liteframe.align.command import LMACommand, run_stages
from liteframe.training.command import exit_codes


def main() -> None:
    """Entry point."""
    with exit_codes("train_lma.py"):
        if sys.argv[1:2] == ["stages"]:
            run_stages(sys.argv[2:])
        else:
            LMACommand()


if __name__ == "__main__":
    main()
