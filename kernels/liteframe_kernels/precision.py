"""The precision that sums are kept in. Imports torch only: it travels with the references inside exported models."""

import torch


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Dtype sums are kept in: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32
