"""Compressed token distillation: train a LiteFrame encoder from a frozen teacher.

python train_ctd.py fit --config configs/ctd/<run>.yaml [--data.videos DIR|manifest.jsonl] [--run DIR] [...]
"""

from liteframe.distill.command import CTDCommand
from liteframe.training.command import exit_codes


def main() -> None:
    """Entry point."""
    with exit_codes("train_ctd.py"):
        CTDCommand()


if __name__ == "__main__":
    main()
