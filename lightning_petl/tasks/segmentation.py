"""Semantic segmentation."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_petl import probe
from lightning_petl.adapter import Method
from lightning_petl.backbones import Segmenter, TimmArgument
from lightning_petl.data.notices import listed
from lightning_petl.errors import ConfigError
from lightning_petl.heads.segmentation import HeadKind
from lightning_petl.tasks.confusion import ClassScores, Confusion
from lightning_petl.tasks.inference import Inference, InferenceKind, Size
from lightning_petl.tasks.pixel_losses import IGNORED, cross_entropy, dice_loss
from lightning_petl.tasks.reach import freeze_unreached
from lightning_petl.tasks.task import PETLTask

TrainBatch = tuple[Tensor, Tensor]
EvalBatch = tuple[Sequence[Tensor], Sequence[Tensor]]
PredictBatch = tuple[Sequence[Tensor], Tensor, Sequence[Size]]

logger = logging.getLogger(__name__)


class SegmentationTask(PETLTask):
    """Trains a method on a frozen backbone, and a decode head, to give each pixel a class.

    Training batches are ``(images, masks)``: float ``(batch, 3, height, width)``, normalised, and int64
    ``(batch, height, width)``, with 255 for pixels without a class. Validation and test batches are lists, one entry a
    sample: images ``(3, h, w)`` and masks ``(H0, W0)`` of any size. Scores are resampled to the mask's size.

    Logged: ``train/loss`` and ``train/ignored_batches`` (batches without any pixel that has a class; their loss is 0);
    for each of ``val`` and ``test``, all from one count of pixels over the whole split: ``miou``, ``mean_accuracy``
    and ``pixel_accuracy`` in 0 to 1 (see `ClassScores` for classes that do not occur), ``loss``, and ``n_scored``
    images; for ``test`` also ``test/iou/CLASS`` of each class that occurs.

    Attributes:
        inference: How images of any size are scored.
        class_scores: Scores of each class in the last pass over "val" and "test".

    Args:
        backbone: timm's name of a model that gives feature maps.
        method: What adapts it.
        head: The decode head: ``linear``, ``naive``, ``pup`` or ``mla`` (SETR), or ``upernet``.
        head_channels: Width of the head; null for its own, 256, or 512 for ``upernet``.
        head_dropout: Probability of dropping a channel in front of the head's last convolution.
        layers: Layers of the backbone that the head reads, from the first to the last; null for the last one, or four.
        auxiliary_layers: Layers that have an auxiliary head in training.
        auxiliary_weight: Weight of the loss of each auxiliary head.
        dice_weight: Weight of the dice loss beside the cross entropy.
        inference: ``whole`` images, or ``slide`` for windows.
        window: Height and width of a window of ``slide``; null for the size of the backbone's own input.
        stride: Steps from window to window of ``slide``; null for two thirds of the window.
        windows_per_step: Windows, or whole images of one size, that the model takes at a time in evaluation.
        scales: Factors of an image's size in evaluation; probabilities are averaged over them.
        flip: Whether evaluation averages over each image and its mirror image.
        **kwargs: See `PETLTask`.
    """

    takes = "images with masks"
    monitor: ClassVar[str] = "val/miou"
    architecture: Segmenter

    def __init__(
        self,
        backbone: str,
        method: Method,
        head: HeadKind = "linear",
        head_channels: int | None = None,
        head_dropout: float = 0.1,
        layers: list[int] | None = None,
        auxiliary_layers: Sequence[int] = (),
        auxiliary_weight: float = 0.4,
        dice_weight: float = 0.0,
        inference: InferenceKind = "whole",
        window: tuple[int, int] | None = None,
        stride: tuple[int, int] | None = None,
        windows_per_step: int = 8,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        **kwargs: Any,
    ) -> None:
        for name, value in (("auxiliary_weight", auxiliary_weight), ("dice_weight", dice_weight)):
            if not 0 <= value < float("inf"):
                raise ConfigError(f"{name} is {value}", where=f"model.{name}", fix="give 0 or a positive number")
        chosen = Inference(inference, _pair(window), _pair(stride), windows_per_step, tuple(scales), flip)
        self._head = (head, head_channels, None if layers is None else tuple(layers), tuple(auxiliary_layers))
        self._dropout = head_dropout
        super().__init__(backbone, method, **kwargs)
        self.inference = self._with_window(chosen)
        self.auxiliary_weight, self.dice_weight = auxiliary_weight, dice_weight
        if self.weights is None:
            self._freeze_unreached()
        self.confusion = nn.ModuleDict({split: Confusion(self.num_classes) for split in ("val", "test")})
        self.losses = nn.ModuleDict({split: MeanMetric() for split in ("val", "test")})
        self.class_scores: dict[str, ClassScores] = {}
        self._told = False
        self._told_absent = set[str]()

    def choose_architecture(self, name: str, arguments: dict[str, TimmArgument], num_classes: int) -> Segmenter:
        """A timm backbone with a decode head."""
        return Segmenter(name, arguments, num_classes, *self._head, self._dropout)

    def _with_window(self, chosen: Inference) -> Inference:
        """The settings, with windows of the backbone's own size where none is given, filled up if it takes no other."""
        if chosen.kind != "slide":
            return chosen
        window = chosen.window or self.input_config.image_size
        return replace(chosen, window=window, fill=self.architecture.of_one_size(self.backbone))

    def _freeze_unreached(self) -> None:
        """Runs the model on one blank image, with gradients, to see what the heads depend on."""
        image = torch.zeros(1, 3, *self.input_config.image_size)
        with probe.mode(self.backbone, False), torch.enable_grad():
            outputs = self.architecture.run_all(self.backbone, image)
            freeze_unreached(self.backbone, outputs, self.architecture.reads_last(self.backbone))

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores ``(batch, classes, height, width)`` of images ``(batch, 3, height, width)``, on their pixels."""
        scores = self.architecture.run(self.backbone, inputs)
        return self._on_pixels(scores, inputs.shape[-2:])

    def _on_pixels(self, scores: Tensor, size: Sequence[int]) -> Tensor:
        """Scores on an image's pixels, in float32 where the model runs in less."""
        exact = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return self.architecture.on_pixels(self.backbone, exact, size)

    def run_in_training(self, inputs: Tensor) -> object:
        """The head, and the auxiliary heads."""
        return self.architecture.run_all(self.backbone, inputs)

    def inputs_of(self, batch: Any) -> Tensor:
        """One window of each image of a batch, ``(batch, 3, height, width)``, of the size that windows have."""
        size = self.inference.window or self.input_config.image_size
        return torch.stack([_centre(image, size) for image in batch[0]])

    # -- training ------------------------------------------------------------------------------------------------------

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        """The mean cross entropy of the pixels that have a class, with auxiliary and dice losses.

        Raises:
            PETLError: It is not finite.
        """
        images, masks = batch
        main, *auxiliary = self.architecture.run_all(self.backbone, images)
        loss = self._loss(main, masks)
        for scores in auxiliary:
            loss = loss + self.auxiliary_weight * self._loss(scores, masks)
        self.log_loss(loss, len(images))
        self._count_ignored(masks)
        return loss

    def _loss(self, scores: Tensor, masks: Tensor) -> Tensor:
        pixels = self._on_pixels(scores, masks.shape[-2:])
        loss = cross_entropy(pixels, masks)
        return loss + self.dice_weight * dice_loss(pixels, masks) if self.dice_weight else loss

    def _count_ignored(self, masks: Tensor) -> None:
        ignored = bool((masks == IGNORED).all())
        if ignored and not self._told:
            logger.warning("no pixel of a training batch has a class; the loss is 0 (see train/ignored_batches)")
            self._told = True
        self.log(
            "train/ignored_batches",
            torch.tensor(float(ignored), device=self.device),
            on_step=False,
            on_epoch=True,
            reduce_fx="sum",
            sync_dist=True,
            batch_size=1,
        )

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> dict[str, list[Tensor]]:
        """Counts one batch of the validation split; ``predicted`` holds the classes ``(H0, W0)`` of each image."""
        return self._score(batch, "val")

    def test_step(self, batch: EvalBatch, batch_idx: int) -> dict[str, list[Tensor]]:
        """Counts one batch of the test split; ``predicted`` holds the classes ``(H0, W0)`` of each image."""
        return self._score(batch, "test")

    def predict_step(self, batch: PredictBatch, batch_idx: int) -> list[tuple[int, Tensor]]:
        """The index of each image, and its predicted classes ``(H0, W0)``, on the CPU."""
        images, indices, sizes = batch
        dtype = torch.uint8 if self.num_classes <= 256 else torch.int32
        found = self.scores(images, [_size(size) for size in sizes])
        return [(int(index), scores.argmax(0).to(dtype).cpu()) for index, scores in zip(indices, found, strict=True)]

    def scores(self, images: Sequence[Tensor], sizes: Sequence[Size]) -> Iterator[Tensor]:
        """Scores of images of any size, one after the other, by the task's `Inference`.

        Args:
            images: Each ``(3, h, w)``, normalised.
            sizes: Height and width of each result ``(classes, height, width)``.
        """
        return self.inference(self.forward, images, sizes)

    def _score(self, batch: EvalBatch, split: str) -> dict[str, list[Tensor]]:
        images, masks = batch
        found = []
        for scores, mask in zip(self.scores(images, [_size(mask.shape) for mask in masks]), masks, strict=True):
            pixels = int((mask != IGNORED).sum())
            if pixels:
                self._loss_metric(split).update(cross_entropy(scores[None], mask[None]), weight=pixels)
            predicted = scores.argmax(dim=0)
            self._confusion(split).update(predicted, mask)
            found.append(predicted)
        return {"predicted": found}

    def on_validation_epoch_end(self) -> None:
        """Logs the scores of the validation split."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Logs the scores of the test split, and each class's IoU."""
        scores = self._log_scores("test")
        for name, iou in zip(self.class_names, scores.iou.tolist(), strict=True):
            if not math.isnan(iou):  # a class that does not occur has none
                self._log(f"test/iou/{name}", iou)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, their numbers where none were given."""
        return self.classes or tuple(map(str, range(self.num_classes)))

    def _log_scores(self, split: str) -> ClassScores:
        counts, images = self._confusion(split).compute()
        scores = self.class_scores[split] = ClassScores.of(counts)
        self._tell_absent(split, scores)
        loss = float(self._loss_metric(split).compute()) if int(scores.pixels.sum()) else 0.0
        for name in ("miou", "mean_accuracy", "pixel_accuracy"):
            self._log(f"{split}/{name}", getattr(scores, name), prog_bar=name == "miou")
        self._log(f"{split}/loss", loss)
        self._log(f"{split}/n_scored", float(images))
        self._confusion(split).reset()
        self._loss_metric(split).reset()
        return scores

    def _tell_absent(self, split: str, scores: ClassScores) -> None:
        """Warns, once a split, of classes that no mask holds, such as that of 255 in masks of 0 and 255."""
        if self.trainer.sanity_checking or split in self._told_absent:
            return
        self._told_absent.add(split)
        absent = [name for name, count in zip(self.class_names, scores.pixels.tolist(), strict=True) if not count]
        if absent and self.trainer.is_global_zero:
            logger.warning(
                "no mask of %s has a pixel of %d of the %d classes: %s; if there should be some, check "
                "data.ignore_index, whose pixels have no class, and data.reduce_zero_label",
                split,
                len(absent),
                self.num_classes,
                listed(absent),
            )

    def _log(self, name: str, value: float, prog_bar: bool = False) -> None:
        # All processes have the same value already; the largest of equal numbers is that number, to the bit.
        self.log(name, value, prog_bar=prog_bar, reduce_fx="max", sync_dist=True)

    def _confusion(self, split: str) -> Confusion:
        return cast(Confusion, self.confusion[split])

    def _loss_metric(self, split: str) -> MeanMetric:
        return cast(MeanMetric, self.losses[split])


def _pair(size: Sequence[int] | None) -> Size | None:
    return None if size is None else _size(size)


def _size(size: Sequence[int]) -> Size:
    height, width = size
    return int(height), int(width)


def _centre(image: Tensor, size: Size) -> Tensor:
    """The middle of an image, ``(3, *size)``; zeros fill up on the right and below what it lacks."""
    top, left = (max(0, (have - want) // 2) for have, want in zip(image.shape[-2:], size, strict=True))
    window = image[..., top : top + size[0], left : left + size[1]]
    return F.pad(window, (0, size[1] - window.shape[-1], 0, size[0] - window.shape[-2]))
