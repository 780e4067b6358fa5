"""Parameters and FLOPs, and what a saved encoder is."""

from __future__ import annotations

import argparse
from pathlib import Path

from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.cost import INTERNVIT_300M, VIT_BASE, Cost, cost
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.student.mixers import MIXERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `liteframe info`."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("encoder", nargs="?", type=Path, metavar="DIR", help="a saved encoder folder to describe")
    what.add_argument("--teachers", action="store_true", help="what load_teacher takes, as a table in Markdown")


def run(args: argparse.Namespace) -> int:
    """Print the tables; ValueError or FileNotFoundError when DIR is no readable encoder."""
    if args.encoder is not None:
        print("\n".join(describe_encoder(args.encoder)))
        return 0
    if args.teachers:
        from liteframe.models.teacher.catalog import table  # imports transformers and timm

        print("\n".join(table()))
        return 0
    rows = [
        ("teacher: InternViT-300M", cost(INTERNVIT_300M)),
        ("student without compression", cost(VIT_BASE)),
        ("student: LiteFrame", cost(LiteFrameConfig())),
        ("  of ViT-S width", cost(LiteFrameConfig(dim=384, heads=6))),
        ("  of ViT-Ti width", cost(LiteFrameConfig(dim=192, heads=3))),
    ]
    print("256 frames of 448x448; FLOPs are 2 per multiply-add of linear and convolution layers\n")
    print("\n".join(cost_table(rows)))
    return 0


def cost_table(rows: list[tuple[str, Cost]]) -> list[str]:
    """One line a model, under a heading."""
    cells = [("model", "parameters / FLOPs", "with attention", "tokens a frame")]
    for name, row in rows:
        total = (row.flops + row.attention_flops) / 1e12
        cells.append(
            (name, f"{row.params / 1e6:.2f}M / {row.flops / 1e12:.2f}T", f"{total:.2f}T", f"{row.tokens_per_frame:g}")
        )
    first, *others = [max(len(line[column]) for line in cells) for column in range(4)]
    return [
        "  ".join([line[0].ljust(first), *(cell.rjust(w) for cell, w in zip(line[1:], others, strict=True))])
        for line in cells
    ]


def describe_encoder(folder: Path) -> list[str]:
    """What `folder` holds, after loading it, so that damage shows."""
    encoder = LiteFrameEncoder.from_pretrained(folder)
    config = encoder.config
    own = cost(config, frames=config.clip_frames)
    t, h, w = config.compression
    side = config.image_size // config.patch_size
    compressing = ", ".join(f"{stride} after block {block}" for block, stride in config.downsample.items()) or "none"
    return aligned(
        [
            ("folder", str(folder)),
            ("parameters", f"{own.params / 1e6:.2f}M ({own.params:,}), {next(encoder.parameters()).dtype}"),
            ("FLOPs", f"{own.flops / 1e9:.2f}G (with attention {(own.flops + own.attention_flops) / 1e9:.2f}G) "
                      f"for a clip of {config.clip_frames} frames"),
            ("input", f"[B,T,3,{config.image_size},{config.image_size}], {config.resize}, "
                      f"mean {config.image_mean}, std {config.image_std}"),
            ("output", f"[B,T/{t},{side // h},{side // w},{config.teacher_dim}]"),
            ("tokens a frame", f"{own.tokens_per_frame:g} after a 2x2 pixel shuffle"),
            ("clip", f"{config.clip_frames} frames"),
            ("blocks", f"{config.depth} of {config.dim} channels, {config.heads} heads, MLP {config.mlp_dim}, "
                       f"patch {config.patch_size}"),
            ("temporal mixer", MIXERS[config.temporal_mixer].describe(config)),
            ("compression", f"{config.compression}: {compressing}"),
        ]
    )  # fmt: skip


def aligned(pairs: list[tuple[str, str]]) -> list[str]:
    """Lines of names and values, the values below each other."""
    width = max(16, max(len(name) for name, _ in pairs))
    return [f"{name.ljust(width)}  {value}" for name, value in pairs]
