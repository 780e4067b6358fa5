"""Write an encoder or a Video LLM for other software."""

from __future__ import annotations

import argparse
import sys
from typing import Any

ENCODER_HELP = "an encoder, for AutoModel.from_pretrained(OUT, trust_remote_code=True)"
ONNX_HELP = "an encoder as ONNX, with any number of clips, frames and pixels, checked in onnxruntime"
TORCH_HELP = "an encoder as a torch.export program, with any number of clips, frames and pixels"
VLM_HELP = "a Video LLM with its encoder, for AutoModelForImageTextToText and AutoProcessor; LoRA is merged"
VLM_TEXT = f"""Write {VLM_HELP}.

  liteframe export hf-vlm RUN OUT                                 a finished LMA run
  liteframe export hf-vlm --vlm V --encoder E [--adapter A] OUT   its parts, one by one
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `liteframe export`, a sub-command for each format."""
    formats = parser.add_subparsers(dest="format", metavar="FORMAT", required=True)
    encoder = formats.add_parser("hf-encoder", help=ENCODER_HELP, description=f"Write {ENCODER_HELP}.")
    encoder.add_argument("encoder", metavar="ENCODER", help="encoder folder, such as runs/ctd_toy/encoder")
    encoder.add_argument("out", metavar="OUT", help="folder to write; it must not exist")
    add_mode(encoder)
    onnx = formats.add_parser("onnx", help=ONNX_HELP, description=f"Write {ONNX_HELP}.")
    onnx.add_argument("encoder", metavar="ENCODER", help="encoder folder, such as runs/ctd_toy/encoder")
    onnx.add_argument("out", metavar="OUT", help="folder to write; it must not exist")
    add_mode(onnx)
    onnx.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the graph (float32)")
    graph = formats.add_parser("torch", help=TORCH_HELP, description=f"Write {TORCH_HELP}.")
    graph.add_argument("encoder", metavar="ENCODER", help="encoder folder, such as runs/ctd_toy/encoder")
    graph.add_argument("out", metavar="OUT", help="folder to write; it must not exist")
    add_mode(graph)
    graph.add_argument("--compiled", action="store_true", help="an AOTInductor package compiled for this CPU")
    vlm = formats.add_parser(
        "hf-vlm",
        help=VLM_HELP,
        description=VLM_TEXT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=f"{parser.prog} hf-vlm [-h] [--vlm VLM] [--encoder ENCODER] [--adapter ADAPTER] [--mode MODE] [RUN] OUT",
    )
    vlm.add_argument("paths", nargs="+", metavar="PATH", help="LMA run folder, if any, and the folder to write")
    vlm.add_argument("--vlm", help="InternVL, folder or Hugging Face id; default: the one that RUN was trained on")
    vlm.add_argument("--encoder", help="encoder folder; default: the one that RUN was trained on")
    vlm.add_argument("--adapter", help="PEFT adapter folder trained on the two; default: that of RUN")
    add_mode(vlm)


def add_mode(parser: argparse.ArgumentParser) -> None:
    """What an elastic encoder needs."""
    parser.add_argument("--mode", help="of an elastic encoder, the compression that is exported, such as 32x")


def run(args: argparse.Namespace) -> int:
    """Export, and print how exactly the reloaded export computes what was trained.

    Raises:
        ValueError: see export_encoder and export_vlm; nothing is written then.
    """
    from liteframe_export.files import check_new
    from transformers.utils import logging

    logging.disable_progress_bar()
    check_new(args.paths[-1] if args.format == "hf-vlm" else args.out)
    if args.format in ("onnx", "torch"):
        return _graph(args)
    if args.format == "hf-encoder":
        from liteframe_export.hf_encoder import export_encoder

        out = args.out
        print("exporting, then reloading in a process without liteframe ...", file=sys.stderr)
        parity = export_encoder(args.encoder, out, mode=args.mode)
    else:
        from liteframe_export.hf_vlm import export_vlm

        out = args.paths[-1]
        parts = _parts(args)
        print("merging and exporting, then reloading in a process without liteframe ...", file=sys.stderr)
        parity = export_vlm(parts, out)
    print(
        f"{out}: written; reloaded without liteframe it differs by at most {parity['max_abs_difference']:.2g} "
        f"in float32 (limit {parity['tolerance']:g}); how to load it: {out}/README.md"
    )
    return 0


def _graph(args: argparse.Namespace) -> int:
    print("tracing, then running the graph at several sizes ...", file=sys.stderr)
    if args.format == "onnx":
        from liteframe_export.onnx_encoder import export_onnx

        parity = export_onnx(args.encoder, args.out, dtype=args.dtype, mode=args.mode)
    else:
        from liteframe_export.torch_encoder import export_torch

        parity = export_torch(args.encoder, args.out, compiled=args.compiled, mode=args.mode)
    print(
        f"{args.out}: written; it differs from the encoder by at most {parity['max_relative_difference']:.2g} of the "
        f"largest feature at {len(parity['cases'])} sizes (limit {parity['tolerance']:g}); how to use it: "
        f"{args.out}/README.md"
    )
    return 0


def _parts(args: argparse.Namespace) -> Any:
    from liteframe_export.provenance import Parts, parts_of_run

    if len(args.paths) > 2:
        raise ValueError(f"hf-vlm takes [RUN] OUT, got {len(args.paths)} folders: {', '.join(args.paths)}")
    if len(args.paths) == 2:
        if args.adapter:
            raise ValueError("hf-vlm: the run has its own adapter; leave out --adapter, or RUN")
        return parts_of_run(args.paths[0], vlm=args.vlm, encoder=args.encoder, mode=args.mode)
    if not args.vlm or not args.encoder:
        raise ValueError("hf-vlm: name an LMA run (hf-vlm RUN OUT), or both --vlm and --encoder")
    return Parts(args.vlm, args.encoder, args.adapter, args.mode)
