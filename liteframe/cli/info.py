"""Parameters and FLOPs, and what a saved encoder is."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.cost import INTERNVIT_300M, VIT_BASE, Cost, cost
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.student.mixers import MIXERS
from liteframe.texts import read_yaml
from liteframe.training.configs import packaged_configs


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
    print("\nablations (configs/ctd/ablations), and what the paper prints for them\n")
    print("\n".join(ablation_table()))
    return 0


class Printed(NamedTuple):
    """What the paper prints for an ablation: parameters in millions, TFLOPs; and what of ours is otherwise."""

    params: str
    flops: str
    remark: str = ""


PRINTED = {
    "none of them": Printed("87.15", "17.92"),
    "dense": Printed("109.54", "22.44", "not recovered: 1.18M and 0.11T of the paper's"),
    "attn": Printed("143.83", "32.77", "the paper's module has an MLP, see attn_block"),
    "attn_block": Printed("143.83", "32.77", "the paper's FLOPs fit strides of (4,1,1) and (1,2,2) only"),
    "spacetime": Printed("87.15", "17.92", "the paper's counts contain temporal convolutions, its latency does not"),
    "plain_distillation": Printed("86.31", "44.81", "the paper's counts lack the head to the teacher's channels"),
}


def ablation_table() -> list[str]:
    """One line an ablation: what its student costs, and whether the paper's digits are met."""
    base, files = packaged_configs()["ctd/internvl3_8b"], packaged_configs()
    shape = read_yaml(base)["model"]["student"]
    named = {name.rpartition("/")[2]: path for name, path in files.items() if name.startswith("ctd/ablations/")}
    cells = [("ablation", "parameters / FLOPs", "with attention", "the paper's", "")]
    for name, path in {"none of them": base, **named}.items():
        row = cost(LiteFrameConfig(**{**shape, **read_yaml(path)["model"].get("student", {})}))
        ours = (f"{row.params / 1e6:.2f}", f"{row.flops / 1e12:.2f}")
        printed, verdict = PRINTED.get(name), ""
        if printed is not None:
            met = [what for what, own, its in zip(("parameters", "FLOPs"), ours, printed, strict=False) if own == its]
            verdict = f"{' and '.join(met) or 'neither'} met" + (f"; {printed.remark}" if printed.remark else "")
        theirs = "-" if printed is None else f"{printed.params}M / {printed.flops}T"
        cells.append((name, f"{ours[0]}M / {ours[1]}T", _with_attention(row), theirs, verdict))
    return [line.rstrip() for line in _columns(cells, left=(0, 4))]


def cost_table(rows: list[tuple[str, Cost]]) -> list[str]:
    """One line a model, under a heading."""
    cells = [("model", "parameters / FLOPs", "with attention", "tokens a frame")]
    for name, row in rows:
        costs = f"{row.params / 1e6:.2f}M / {row.flops / 1e12:.2f}T"
        cells.append((name, costs, _with_attention(row), f"{row.tokens_per_frame:g}"))
    return _columns(cells)


def _with_attention(row: Cost) -> str:
    return f"{(row.flops + row.attention_flops) / 1e12:.2f}T"


def _columns(cells: Sequence[tuple[str, ...]], left: tuple[int, ...] = (0,)) -> list[str]:
    """Lines of cells below each other; columns stand on the right but for those of `left`."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(w) if n in left else cell.rjust(w) for n, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]


def describe_encoder(folder: Path) -> list[str]:
    """What `folder` holds, after loading it, so that damage shows."""
    encoder = LiteFrameEncoder.from_pretrained(folder)
    config = encoder.config
    own = cost(config, frames=config.clip_frames)
    image = cost(config, 1, still=True)
    t, h, w = config.compression
    side = config.image_size // config.patch_size
    compressing = ", ".join(f"{stride} after block {block}" for block, stride in config.downsample.items()) or "none"
    return aligned(
        [
            ("folder", str(folder)),
            ("parameters", f"{own.params / 1e6:.2f}M ({own.params:,}), {next(encoder.parameters()).dtype}"),
            ("FLOPs", f"{own.flops / 1e9:.2f}G (with attention {(own.flops + own.attention_flops) / 1e9:.2f}G) "
                      f"for a clip of {config.clip_frames} frames, "
                      f"{image.flops / 1e9:.2f}G (with attention {(image.flops + image.attention_flops) / 1e9:.2f}G) "
                      "for a still image"),
            ("input", f"[B,T,3,{config.image_size},{config.image_size}], {config.resize}, "
                      f"mean {config.image_mean}, std {config.image_std}"),
            ("output", f"[B,T/{t},{side // h},{side // w},{config.teacher_dim}]"
                       + (f", features of {config.deepstack} inner blocks (deepstack) among them"
                          if config.deepstack else "")),
            ("tokens a frame", f"{own.tokens_per_frame:g} after a 2x2 pixel shuffle"),
            ("clip", f"{config.clip_frames} frames"),
            ("blocks", f"{config.depth} of {config.dim} channels, {config.heads} heads, MLP {config.mlp_dim}, "
                       f"patch {config.patch_size}"),
            ("temporal mixer", MIXERS[config.temporal_mixer].describe(config)),
            ("compression", f"{config.compression}: {compressing}"),
            *_modes(config),
        ]
    )  # fmt: skip


def _modes(config: LiteFrameConfig) -> list[tuple[str, str]]:
    """A line a mode of an elastic encoder."""
    lines = []
    for mode, window in config.windows.items():
        own = cost(config.of_mode(mode), frames=config.clip_frames)
        flops = (own.flops + own.attention_flops) / 1e9
        lines.append(
            (f"mode {mode}", f"{window}, {own.tokens_per_frame:g} tokens a frame, {flops:.2f}G with attention")
        )
    return lines


def aligned(pairs: list[tuple[str, str]]) -> list[str]:
    """Lines of names and values, the values below each other."""
    width = max(16, max(len(name) for name, _ in pairs))
    return [f"{name.ljust(width)}  {value}" for name, value in pairs]
