"""Depthwise video convolutions and weighted average pooling, each with a plain PyTorch reference.

Imports torch and, where it is installed, triton; nothing of liteframe. Every function takes `backend`:
None (Triton for CUDA tensors, the reference for others), "triton" or "reference".
"""

from liteframe_kernels.backend import backend_report, force_backend
from liteframe_kernels.strided_conv.op import strided_conv
from liteframe_kernels.temporal_conv.op import temporal_conv
from liteframe_kernels.weighted_average_pool.op import weighted_average_pool

__all__ = ["backend_report", "force_backend", "strided_conv", "temporal_conv", "weighted_average_pool"]
