"""A trained encoder as ONNX, checked in onnxruntime."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from liteframe.models.student.elastic import load_one_mode
from liteframe_export.card import write_graph_folder
from liteframe_export.graph import Sized, check_inputs, compare_graph, dynamic_shapes, example, traceable

FILE = "encoder.onnx"
DTYPES = {"float32": torch.float32, "float16": torch.float16}
OPSET = 20

USAGE = """\
import json

import numpy as np
import onnxruntime

folder = "{folder}"  # this folder
settings = json.load(open(f"{{folder}}/preprocessor_config.json"))
session = onnxruntime.InferenceSession(f"{{folder}}/encoder.onnx")

# RGB frames [T,H,W,3] of a clip, already resized: H a multiple of {row}, W of {column}
frames = np.zeros(({frames}, {size}, {size}, 3), np.uint8)
frames = np.concatenate([frames, frames[-1:].repeat(-len(frames) % {t}, 0)])  # so is T, of {t}
mean, std = np.float32(settings["image_mean"]), np.float32(settings["image_std"])
video = ((frames / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)[None].astype(np.{dtype})  # [1,T,3,H,W]
(features,) = session.run(None, {{"video": video}})
print(features.shape)  # (1, T/{t}, H/{row}, W/{column}, {dim})
"""


def export_onnx(
    encoder_dir: str | os.PathLike[str], out: str | os.PathLike[str], *, dtype: str = "float32", mode: str | None = None
) -> dict[str, Any]:
    """Write an encoder folder as ONNX with any number of clips, frames (multiples of t) and pixels (of the stride).

    Args:
        encoder_dir: what LiteFrameEncoder.save_pretrained wrote.
        out: the new folder: encoder.onnx, config.json, preprocessor_config.json, README.md, parity.json.
        dtype: "float32" or "float16", of weights, input and output.
        mode: of an elastic encoder, which is exported in one alone.

    Returns:
        The parity report.

    Raises:
        ValueError: onnx or onnxruntime is not installed, `out` exists, or the graph computes something else.
        FileNotFoundError: `encoder_dir` is no encoder.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - what torch.onnx translates with
        from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument
    except ImportError as error:
        raise ValueError(f"ONNX export needs {error.name}: pip install 'liteframe[onnx]'") from error
    encoder = load_one_mode(encoder_dir, mode).float()

    def write(folder: Path) -> dict[str, Any]:
        program = torch.onnx.export(
            Sized(traceable(encoder)).to(DTYPES[dtype]),
            (example(encoder.config, DTYPES[dtype]),),
            dynamic_shapes=dynamic_shapes(encoder.config),
            input_names=["video"],
            output_names=["features"],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(folder / FILE)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"])

        def run(video: Tensor) -> Tensor:
            return torch.from_numpy(session.run(None, {"video": video.numpy()})[0])

        parity = compare_graph(encoder, run, DTYPES[dtype], {"onnxruntime": onnxruntime.__version__})
        return parity | {"inputs": check_inputs(encoder, run, DTYPES[dtype], (InvalidArgument, Fail))}

    needs = "onnxruntime and numpy"
    return write_graph_folder(encoder_dir, encoder.config, out, write, USAGE, needs, dtype)
