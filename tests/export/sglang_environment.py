"""What sglang_check.py sets before it imports sglang, for its child processes too: a machine without GPU or kernels."""

import importlib.util
import os
import sys
from pathlib import Path

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
if importlib.util.find_spec("sgl_kernel") is None:  # then torch computes everything
    stand_in = str(Path(__file__).parent / "sglang_cpu")
    sys.path.insert(0, stand_in)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [stand_in, os.environ.get("PYTHONPATH")]))
