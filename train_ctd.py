"""Compressed token distillation: train a LiteFrame encoder from a frozen teacher.

python train_ctd.py fit --config configs/ctd/<run>.yaml [--data.videos DIR|manifest.jsonl] [--run DIR] [...]
"""

import sys

from liteframe.cli.main import train


def main() -> None:
    """Entry point."""
    train("distill", sys.argv[1:], "train_ctd.py")


if __name__ == "__main__":
    main()
