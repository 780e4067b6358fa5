"""A trained encoder as a torch.export program and, compiled for a device, as an AOTInductor package."""

import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe_export.card import write_graph_folder
from liteframe_export.graph import compare_graph, dynamic_shapes, example, traceable

PROGRAM, PACKAGE = "encoder.pt2", "encoder.aoti.pt2"

_HEAD = """\
import torch

folder = "{folder}"  # this folder
"""
_TAIL = """\

# [B,T,3,H,W], normalized as preprocessor_config.json says; T a multiple of {t}, H of {row}, W of {column}
video = torch.zeros(1, {frames}, 3, {size}, {size})
features = encoder(video)
print(tuple(features.shape))  # (1, T/{t}, H/{row}, W/{column}, {dim})
"""
PROGRAM_USAGE = (
    _HEAD
    + 'program = torch.export.load(f"{{folder}}/encoder.pt2")\n'
    + "# tracing assumes that no size is one, which the graph does not need: parity.json has such sizes\n"
    + "encoder = program.module(check_guards=False)"
    + _TAIL
)
PACKAGE_USAGE = (
    _HEAD
    + 'encoder = torch._inductor.aoti_load_package(f"{{folder}}/encoder.aoti.pt2")  # compiled, no Python inside'
    + _TAIL
)


def export_torch(
    encoder_dir: str | os.PathLike[str], out: str | os.PathLike[str], *, compiled: bool = False
) -> dict[str, Any]:
    """Write an encoder folder as a float32 graph of torch.export, or compiled ahead of time for this machine's CPU.

    Args:
        encoder_dir: what LiteFrameEncoder.save_pretrained wrote.
        out: the new folder: the graph, config.json, preprocessor_config.json, README.md, parity.json.
        compiled: an AOTInductor package, which C++ can load too; takes a C++ compiler and a minute or more.

    Returns:
        The parity report.

    Raises:
        ValueError: `out` exists, or the graph computes something else than the encoder.
        FileNotFoundError: `encoder_dir` is no encoder.
    """
    encoder = LiteFrameEncoder.from_pretrained(encoder_dir).float()

    def write(folder: Path) -> dict[str, Any]:
        config = encoder.config
        program = torch.export.export(
            traceable(encoder), (example(config, torch.float32),), dynamic_shapes=dynamic_shapes(config), strict=False
        )
        if compiled:
            path = str(folder / PACKAGE)
            torch._inductor.aoti_compile_and_package(program, package_path=path)
            graph: Any = torch._inductor.aoti_load_package(path)
        else:
            # Not straight into the file: on a full disk torch's own writer ends the process.
            packed = io.BytesIO()
            torch.export.save(program, packed)
            (folder / PROGRAM).write_bytes(packed.getbuffer())
            graph = torch.export.load(folder / PROGRAM).module(check_guards=False)

        def run(video: Tensor) -> Tensor:
            with torch.inference_mode():
                return graph(video)

        return compare_graph(encoder, run, torch.float32, {})

    usage = PACKAGE_USAGE if compiled else PROGRAM_USAGE
    needs = f"torch {torch.__version__.split('+')[0]} (graphs of one version are not promised to load in another)"
    return write_graph_folder(encoder_dir, encoder.config, out, write, usage, needs, "float32")
