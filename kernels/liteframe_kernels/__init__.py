"""What a student computes between its matrix products, and weighted average pooling, each with a PyTorch reference.

Imports torch and, where it is installed, triton; nothing of liteframe. Every function takes `backend`:
None (Triton for CUDA tensors, the reference for others), "triton" or "reference".
"""

from liteframe_kernels.backend import backend_report, force_backend
from liteframe_kernels.residual_norm.op import residual_norm
from liteframe_kernels.strided_conv.op import strided_conv
from liteframe_kernels.temporal_conv.op import temporal_conv
from liteframe_kernels.weighted_average_pool.op import weighted_average_pool

__all__ = ["backend_report", "force_backend", "residual_norm", "strided_conv", "temporal_conv", "weighted_average_pool"]
