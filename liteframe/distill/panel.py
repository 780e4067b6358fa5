"""A picture of what the student has learned: frames, teacher's saliency, target tokens and student tokens in color.

Shapes: T frames, (h,w) patch grid, T' slots, (h',w') pooled grid, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def pca_colors(target: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """The three main directions of the target's tokens as red, green and blue, for both.

    [T',h',w',C] twice -> [T',3,h',w'] twice, in [0, 1]; the range is that of the target, so a student that misses it
    shows other colors.
    """
    flat = target.flatten(0, 2).double()
    mean = flat.mean(0)
    directions = torch.linalg.svd(flat - mean, full_matrices=False).Vh[:3]
    projected = (flat - mean) @ directions.T
    low, high = projected.quantile(0.02, dim=0), projected.quantile(0.98, dim=0)

    def colors(tokens: Tensor) -> Tensor:
        values = ((tokens.double() - mean) @ directions.T - low) / (high - low).clamp_min(1e-12)
        # Fewer than three directions (a single token) leave the other colors dark.
        values = F.pad(values, (0, 3 - values.shape[-1]))
        return values.clamp(0, 1).permute(0, 3, 1, 2).float()

    return colors(target), colors(student)


def clip_panel(frames: Tensor, weights: Tensor | None, target: Tensor, student: Tensor) -> Tensor:
    """One picture of four rows, one column a slot.

    Args:
        frames: [T,3,H,W] in [0, 1].
        weights: saliency of each frame's patches [T,h,w]; None leaves the second row out.
        target: [T',h',w',C].
        student: [T',h',w',C].

    Returns:
        [3,4*H,T'*W] in [0, 1]: first frame of each slot, its saliency (bright is high), target, student.
    """
    slots, size = target.shape[0], frames.shape[-2:]
    step = frames.shape[0] // slots
    rows = [frames[::step].float()]
    if weights is not None:
        first = weights[::step].float()
        low, high = first.amin((1, 2), keepdim=True), first.amax((1, 2), keepdim=True)
        grey = ((first - low) / (high - low).clamp_min(1e-12))[:, None].expand(-1, 3, -1, -1)
        rows.append(F.interpolate(grey, size=size))
    rows += [F.interpolate(colors, size=size) for colors in pca_colors(target, student)]
    return torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
