"""Language model alignment: train LoRA on the language model of a Video LLM that has a LiteFrame encoder.

python train_lma.py fit --config configs/lma/<run>.yaml [--data.conversations rows.jsonl] [--run DIR] [...]
python train_lma.py stages --config configs/lma/stages/<stages>.yaml [...]
"""

import sys

from liteframe.cli.main import train


def main() -> None:
    """Entry point."""
    train("align", sys.argv[1:], "train_lma.py")


if __name__ == "__main__":
    main()
