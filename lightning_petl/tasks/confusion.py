"""Scores of segmentation over a whole data set, all from one matrix of counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_petl.tasks.pixel_losses import IGNORED


class Confusion(Metric):
    """Counts pixels by their class and the predicted one, over all images and processes.

    The counts are whole numbers, and processes add them up, so that a score does not depend on how many there are.

    Args:
        num_classes: Number of classes.
        ignore_index: Pixels of this id in a mask are not counted.
    """

    full_state_update = False
    higher_is_better = None
    counts: Tensor
    images: Tensor

    def __init__(self, num_classes: int, ignore_index: int = IGNORED, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes, self.ignore_index = num_classes, ignore_index
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("counts", zeros, dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, mask: Tensor) -> None:
        """Counts one image.

        Args:
            predicted: Classes ``(height, width)``.
            mask: The true ones, ``(height, width)``.
        """
        counted = mask != self.ignore_index
        pairs = mask[counted] * self.num_classes + predicted[counted]
        self.counts += torch.bincount(pairs, minlength=self.num_classes**2).view_as(self.counts)
        self.images += 1

    def compute(self) -> tuple[Tensor, Tensor]:
        """The counts ``(classes, classes)``, rows by the true class, and the number of images, over all processes."""
        return self.counts, self.images


@dataclass(frozen=True)
class ClassScores:
    """What the counts say of each class and of all, in float64.

    A class that occurs neither in a mask nor in a prediction has no score, and is left out of every mean. One that is
    only predicted has an IoU of 0, which counts; its accuracy is left out, for it has no pixels.

    Attributes:
        iou: Intersection over union of each class; NaN where it has none.
        accuracy: Part of each class's pixels that are predicted as such; NaN where it has no pixels.
        pixels: Number of pixels of each class.
        miou: Mean IoU.
        mean_accuracy: Mean accuracy of the classes.
        pixel_accuracy: Part of all pixels that are predicted rightly.
    """

    iou: Tensor
    accuracy: Tensor
    pixels: Tensor
    miou: float
    mean_accuracy: float
    pixel_accuracy: float

    @classmethod
    def of(cls, counts: Tensor) -> ClassScores:
        """Scores of a matrix ``(classes, classes)``, rows by the true class; with no pixel at all, the means are 0."""
        side = round(counts.numel() ** 0.5)
        counts = counts.cpu().double().reshape(side, side)  # exact up to 2**53 pixels
        hits, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
        iou, accuracy = hits / (true + predicted - hits), hits / true
        total = float(counts.sum())
        means = [_mean(iou), _mean(accuracy), float(hits.sum()) / total if total else 0.0]
        return cls(iou, accuracy, true.long(), *means)


def _mean(values: Tensor) -> float:
    known = values[~values.isnan()]
    return float(known.mean()) if len(known) else 0.0
