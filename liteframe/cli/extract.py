"""Write one compression of an elastic encoder as an ordinary encoder folder."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `liteframe extract`."""
    parser.add_argument("encoder", metavar="ENCODER", type=Path, help="folder of an elastic encoder")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; it must not exist")
    parser.add_argument("--mode", required=True, help="which of its compressions, such as 32x")


def run(args: argparse.Namespace) -> int:
    """Extract and save.

    Raises:
        ValueError: the encoder has no such mode, or is not elastic.
        FileNotFoundError: there is no encoder.
    """
    from liteframe_export.files import check_new

    from liteframe.models.student.elastic import load_one_mode

    check_new(args.out)
    encoder = load_one_mode(args.encoder, args.mode)
    encoder.save_pretrained(args.out)
    t, h, w = encoder.config.compression
    print(f"{args.out}: an ordinary encoder, compression {(t, h, w)}, one token for {t * h * w} patches")
    return 0
