"""Language model alignment: train LoRA on the language model of a Video LLM that has a LiteFrame encoder.

python train_lma.py fit --config configs/lma/<run>.yaml [--data.conversations rows.jsonl] [--run DIR] [...]
"""

from liteframe.align.command import LMACommand
from liteframe.training.command import exit_codes


def main() -> None:
    """Entry point."""
    with exit_codes("train_lma.py"):
        LMACommand()


if __name__ == "__main__":
    main()
