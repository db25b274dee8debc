"""Losses of segmentation that leave out pixels without a class, and are 0, with a gradient, where none has one."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

IGNORED = 255
"""Id of the pixels without a class, in the masks of batches."""


def cross_entropy(scores: Tensor, masks: Tensor) -> Tensor:
    """Mean cross entropy of the pixels that have a class.

    PyTorch's own mean is NaN where no pixel has one.

    Args:
        scores: ``(batch, classes, height, width)``.
        masks: ``(batch, height, width)``, `IGNORED` for pixels without a class.
    """
    total = F.cross_entropy(scores, masks, ignore_index=IGNORED, reduction="sum")
    return total / (masks != IGNORED).sum().clamp(min=1)


def dice_loss(scores: Tensor, masks: Tensor, smooth: float = 1.0) -> Tensor:
    """One minus the soft dice coefficient, mean over the classes that occur in the batch's masks.

    The coefficient of a class is ``(2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth)`` over all its batch's pixels
    that have a class, with probabilities p and targets t (Milletari et al., V-Net, arXiv 1606.04797, without squares).

    Args:
        scores: ``(batch, classes, height, width)``.
        masks: ``(batch, height, width)``, `IGNORED` for pixels without a class.
        smooth: Keeps the coefficient of a class with few pixels from jumping.
    """
    counted = masks != IGNORED
    probabilities = scores.softmax(dim=1).movedim(1, -1)[counted]  # (pixels, classes)
    targets = masks[counted]
    zeros = scores.new_zeros(scores.shape[1])
    hits = zeros.index_add(0, targets, probabilities.gather(1, targets[:, None])[:, 0])
    true = torch.bincount(targets, minlength=scores.shape[1])
    coefficients = (2 * hits + smooth) / (probabilities.sum(0) + true + smooth)
    occurs = true > 0
    return ((1 - coefficients) * occurs).sum() / occurs.sum().clamp(min=1)
