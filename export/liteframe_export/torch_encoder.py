"""A trained encoder as a torch.export program and, compiled for the CPU, as an AOTInductor package.

A program checks what it is given. A package does not: its code reads memory as if every tensor were like the one that
it was traced with, float32 and contiguous, and rounds sizes down (pytorch/pytorch issue 141115). So the first step of
ours is a function in C++, compiled into the package, that sees the tensor as it is: whoever loads the package, from
Python or C++, is protected.
"""

import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from liteframe.models.student.elastic import load_one_mode
from liteframe.models.student.inference import InferenceEncoder
from liteframe_export.card import write_graph_folder
from liteframe_export.graph import check_inputs, compare_graph, dynamic_shapes, example, traceable

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
    + "# compiled, no Python inside; like the encoder it takes any strides, and it refuses other dtypes and sizes\n"
    + 'encoder = torch._inductor.aoti_load_package(f"{{folder}}/encoder.aoti.pt2")'
    + _TAIL
)


# Refuses what the encoder refuses and what the graph would cut off; gives a contiguous copy of all else.
_CHECK = """\
AOTITorchError aoti_torch_cpu_checked_video(
    AtenTensorHandle video, int64_t frames, int64_t row, int64_t column, AtenTensorHandle* checked) {
  using torch::aot_inductor::RAIIAtenTensorHandle;
  int64_t dimensions = 0;
  int64_t* sizes = nullptr;
  int32_t dtype = 0, device = 0, layout = 0;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(video, &dimensions));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(video, &sizes));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(video, &dtype));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(video, &device));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(video, &layout));
  if (dtype != aoti_torch_dtype_float32()) {
    throw std::runtime_error("expected a video in float32, got another dtype: convert it with video.float()");
  }
  if (device != aoti_torch_device_type_cpu() || layout != aoti_torch_layout_strided()) {
    throw std::runtime_error("expected a dense video on the CPU, for which this package was compiled");
  }
  std::string shape;
  for (int64_t i = 0; i < dimensions; ++i) {
    shape += (i == 0 ? "" : ", ") + std::to_string(sizes[i]);
  }
  if (dimensions != 5 || sizes[2] != 3) {
    throw std::runtime_error("expected a video [B,T,3,H,W], got [" + shape + "]");
  }
  const int64_t steps[] = {1, frames, 3, row, column};
  for (int64_t i = 1; i < 5; ++i) {
    if (sizes[i] == 0 || sizes[i] % steps[i] != 0) {
      throw std::runtime_error(
          "expected a video [B,T,3,H,W] with T a multiple of " + std::to_string(frames) + ", H of " +
          std::to_string(row) + " and W of " + std::to_string(column) + ", got [" + shape +
          "]: repeat the last frame, resize the frames");
    }
  }
  int64_t strides[] = {0, 0, 0, 0, 1};
  for (int64_t i = 4; i > 0; --i) {
    strides[i - 1] = strides[i] * sizes[i];
  }
  AtenTensorHandle copy = nullptr;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(5, sizes, strides, dtype, device, 0, &copy));
  RAIIAtenTensorHandle owned(copy);
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_copy_(copy, video, 0));
  *checked = owned.release();
  return AOTI_TORCH_SUCCESS;
}
"""


@torch.library.custom_op("liteframe_export::checked_video", mutates_args=())
def checked_video(video: Tensor, frames: int, row: int, column: int) -> Tensor:
    """What a package calls as _CHECK: a contiguous copy of the video; T, H and W are multiples of the numbers."""
    return video.clone(memory_format=torch.contiguous_format)


@checked_video.register_fake
def _fake(video: Tensor, frames: int, row: int, column: int) -> Tensor:
    return torch.empty_like(video, memory_format=torch.contiguous_format)


class _Checked(nn.Module):
    """A traceable encoder behind the check."""

    def __init__(self, encoder: InferenceEncoder):
        super().__init__()
        self.encoder = encoder
        t, h, w = encoder.config.compression
        self.steps = (t, h * encoder.config.patch_size, w * encoder.config.patch_size)

    def forward(self, video: Tensor) -> Tensor:
        """Features of a video [B,T,3,H,W]."""
        return self.encoder(checked_video(video, *self.steps))


def export_torch(
    encoder_dir: str | os.PathLike[str], out: str | os.PathLike[str], *, compiled: bool = False, mode: str | None = None
) -> dict[str, Any]:
    """Write an encoder folder as a float32 graph of torch.export, or compiled ahead of time for this machine's CPU.

    Args:
        encoder_dir: what LiteFrameEncoder.save_pretrained wrote.
        out: the new folder: the graph, config.json, preprocessor_config.json, README.md, parity.json.
        compiled: an AOTInductor package, which C++ can load too; takes a C++ compiler and a minute or more.
        mode: of an elastic encoder, which is exported in one alone.

    Returns:
        The parity report.

    Raises:
        ValueError: `out` exists, or the graph computes something else than the encoder.
        FileNotFoundError: `encoder_dir` is no encoder.
    """
    encoder = load_one_mode(encoder_dir, mode).float()

    def write(folder: Path) -> dict[str, Any]:
        config = encoder.config
        module = _Checked(traceable(encoder)) if compiled else traceable(encoder)
        program = torch.export.export(
            module, (example(config, torch.float32),), dynamic_shapes=dynamic_shapes(config), strict=False
        )
        if compiled:
            path = str(folder / PACKAGE)
            shims = {torch.ops.liteframe_export.checked_video.default: [_CHECK]}
            torch._inductor.aoti_compile_and_package(
                program, package_path=path, inductor_configs={"aot_inductor.custom_ops_to_c_shims": shims}
            )
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

        parity = compare_graph(encoder, run, torch.float32, {})
        return parity | {"inputs": check_inputs(encoder, run, torch.float32, (RuntimeError,))}

    usage = PACKAGE_USAGE if compiled else PROGRAM_USAGE
    needs = f"torch {torch.__version__.split('+')[0]} (graphs of one version are not promised to load in another)"
    return write_graph_folder(encoder_dir, encoder.config, out, write, usage, needs, "float32")
