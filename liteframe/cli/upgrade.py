"""Make a trained encoder elastic: several compressions in one set of weights, its own output unchanged."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `liteframe upgrade`."""
    parser.add_argument("encoder", metavar="ENCODER", type=Path, help="folder of an encoder with one compression")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; it must not exist")
    parser.add_argument(
        "--modes",
        type=Path,
        metavar="FILE",
        help="YAML of the strides of each mode, such as `32x: {4: [2, 2, 2], 8: [4, 1, 1]}`; default: 4x, 8x, 16x, 32x "
        "and 64x of a student with the paper's strides",
    )


def run(args: argparse.Namespace) -> int:
    """Upgrade and save.

    Raises:
        ValueError: the encoder is elastic already, or the modes do not fit it.
        FileNotFoundError: there is no encoder.
    """
    from liteframe_export.files import check_new

    from liteframe.models.student.elastic import standard_modes, upgrade
    from liteframe.models.student.encoder import LiteFrameEncoder
    from liteframe.texts import read_yaml

    check_new(args.out)
    if args.modes is not None and not args.modes.is_file():
        raise ValueError(f"--modes {args.modes}: no such file")
    encoder = LiteFrameEncoder.from_pretrained(args.encoder)
    try:
        modes = standard_modes(encoder.config.downsample) if args.modes is None else read_yaml(args.modes)
        elastic = upgrade(encoder, modes)
    except ValueError as error:
        place = args.encoder if args.modes is None else f"{args.encoder}, --modes {args.modes}"
        raise ValueError(f"{place}: {error}") from error
    elastic.save_pretrained(args.out)
    print(
        f"{args.out}: modes {', '.join(elastic.config.modes)}; {elastic.config.default_mode} is {args.encoder} as it "
        "was, the others have to be trained (docs/elastic.md)"
    )
    return 0
