"""What held-out clips say about a student, in the teacher's raw feature space."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchmetrics import ExplainedVariance, MeanMetric

from liteframe.distill.losses import mean_cosine


class HeldOutMetrics(nn.Module):
    """Token cosine, explained variance per channel, and cosine behind the Video LLM's projector.

    Targets are the teacher's pooled features, neither clipped nor standardized.

    Args:
        channels: C.
        projected: whether the teacher came with a projector.
        parts: features of one width that channels are made of; cosines are means over them.
    """

    def __init__(self, channels: int, *, projected: bool, parts: int = 1):
        super().__init__()
        self.parts = parts
        self.cosine = MeanMetric()
        self.projected_cosine = MeanMetric() if projected else None
        self.explained = ExplainedVariance(multioutput="raw_values")
        # Sums of squares of channels with a large mean need float64.
        self.explained.set_dtype(torch.float64)

    def update(
        self, student: Tensor, target: Tensor, slot_mask: Tensor, projector: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """Add clips: student and target [B,T,h,w,C], bool [B,T] of slots that count; B may be 0."""
        ours, theirs = student.float()[slot_mask], target.float()[slot_mask]
        self.cosine.update(mean_cosine(ours, theirs, self.parts))
        self.explained.update(ours.flatten(0, -2).double(), theirs.flatten(0, -2).double())
        if self.projected_cosine is not None and projector is not None and len(ours):
            self.projected_cosine.update(mean_cosine(projector(ours).float(), projector(theirs).float(), self.parts))

    def compute(self) -> dict[str, Tensor]:
        """Means over everything since the last reset, synchronized over ranks; empty without data.

        Every rank must have called `update`, with no clips if need be.
        """
        cosine, explained = self.cosine.compute(), torch.as_tensor(self.explained.compute())
        values = {
            "token_cosine": cosine,
            "explained_variance_mean": explained.mean(),
            "explained_variance_median": explained.median(),
        }
        if self.projected_cosine is not None:
            values["projected_cosine"] = self.projected_cosine.compute()
        return {} if cosine.isnan() else {name: value.float() for name, value in values.items()}

    def reset(self) -> None:
        """Start the next validation pass from nothing."""
        for metric in (self.cosine, self.projected_cosine, self.explained):
            if metric is not None:
                metric.reset()
