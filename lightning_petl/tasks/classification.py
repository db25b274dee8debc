"""Image classification."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection, SumMetric
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import v2

from lightning_petl import probe
from lightning_petl.adapter import Method
from lightning_petl.backbones import Architecture, TimmArgument, TimmClassifier
from lightning_petl.data.module import PETLDataModule
from lightning_petl.errors import ConfigError
from lightning_petl.tasks.task import PETLTask


class ClassificationTask(PETLTask):
    """Trains a method on a frozen backbone to tell classes of images apart.

    Batches are ``(images, labels)``: float ``(batch, 3, height, width)``, normalised, and int64 ``(batch,)``. Logged:
    ``train/loss``, and for each of ``val`` and ``test`` the mean ``loss``, ``acc1`` and, above five classes, ``acc5``,
    in 0 to 1 over the whole split.

    Args:
        backbone: timm's name of a model.
        method: What adapts it.
        label_smoothing: Share of the target spread over all classes.
        mixup: Alpha of Mixup; 0 for none.
        cutmix: Alpha of CutMix; 0 for none.
        mixup_switch: Probability of CutMix where both are on.
        **kwargs: See `PETLTask`.
    """

    takes = "images"

    def __init__(
        self,
        backbone: str,
        method: Method,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mixup_switch: float = 0.5,
        **kwargs: Any,
    ) -> None:
        for name, value in (("label_smoothing", label_smoothing), ("mixup_switch", mixup_switch)):
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} is {value}", where=f"model.{name}", fix="give a number in [0, 1]")
        for name, value in (("mixup", mixup), ("cutmix", cutmix)):
            if not 0 <= value < float("inf"):
                raise ConfigError(f"{name} is {value}", where=f"model.{name}", fix="give 0 or a positive number")
        super().__init__(backbone, method, **kwargs)
        self.label_smoothing = label_smoothing
        self.mix = _mixing(self.num_classes, mixup, cutmix, mixup_switch)
        self.val_metrics = _metrics(self.num_classes, "val/")
        self.test_metrics = _metrics(self.num_classes, "test/")

    def setup(self, stage: str) -> None:
        """See `PETLTask.setup`; and runs one input of the data's size, where that is not the backbone's own.

        Raises:
            ConfigError: The backbone does not take it.
        """
        super().setup(stage)
        data = getattr(self._trainer, "datamodule", None)
        size = data.input_config.image_size if isinstance(data, PETLDataModule) else self.input_config.image_size
        if size == self.input_config.image_size:
            return
        example = self.architecture.example(self.backbone, 1).to(next(self.backbone.parameters()))
        try:
            with probe.evaluation(self.backbone):
                self.architecture.run(self.backbone, example.new_zeros(*example.shape[:-2], *size))
        except (AssertionError, RuntimeError, ValueError) as error:  # each library's own
            own, given = (" x ".join(map(str, sides)) for sides in (self.input_config.image_size, size))
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"the backbone takes images of {own}, and not of {given}: {reason}",
                where="data.image_size",
                fix="leave it out, or set model.backbone_args.img_size (of transformers, image_size) to the same",
            ) from error

    def choose_architecture(self, name: str, arguments: dict[str, TimmArgument], num_classes: int) -> Architecture:
        """A timm model with its own classifier."""
        return TimmClassifier(name, arguments, num_classes)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The mean cross entropy of one batch.

        Raises:
            PETLError: It is not finite.
        """
        inputs, labels = batch
        if self.mix is not None:
            inputs, labels = self.mixed(inputs, labels)
        loss = F.cross_entropy(self(inputs), labels, label_smoothing=self.label_smoothing)
        self.log_loss(loss, len(inputs))
        return loss

    def mixed(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixup or CutMix of a whole training batch; labels become ``(batch, classes)``."""
        assert self.mix is not None
        return self.mix(inputs, labels)

    def scores(self, inputs: Tensor) -> Tensor:
        """Scores ``(batch, classes)`` of an evaluation batch; softmax turns them into the probabilities reported."""
        return cast(Tensor, self(inputs))

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Counts one batch of the validation split."""
        self._score(batch, self.val_metrics, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Counts one batch of the test split."""
        self._score(batch, self.test_metrics, "test")

    def _score(self, batch: tuple[Tensor, Tensor], metrics: MetricCollection, split: str) -> None:
        inputs, labels = batch
        scores = self.scores(inputs)
        for name, metric in metrics.items(keep_base=False):
            _update(metric, scores, labels)
            self.log(name, metric, prog_bar=name.endswith("acc1"), on_step=False, on_epoch=True, batch_size=len(inputs))

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> tuple[Tensor, Tensor]:
        """Probabilities ``(batch, classes)`` and the indices ``(batch,)`` of the samples they belong to."""
        inputs, indices = batch
        return self.scores(inputs).softmax(dim=1), indices


def _metrics(num_classes: int, prefix: str) -> MetricCollection:
    """Metrics of one split; ``n_scored`` counts the samples that were really scored."""
    metrics: dict[str, Metric | MetricCollection] = {
        "loss": MeanMetric(),
        "acc1": MulticlassAccuracy(num_classes, top_k=1, average="micro"),
        "n_scored": SumMetric(),
    }
    if num_classes > 5:
        metrics["acc5"] = MulticlassAccuracy(num_classes, top_k=5, average="micro")
    # Metrics with other inputs share no state, so grouping them by state must stay off.
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)


def _update(metric: Metric, scores: Tensor, labels: Tensor) -> None:
    if isinstance(metric, MeanMetric):
        metric.update(F.cross_entropy(scores, labels, reduction="none"))
    elif isinstance(metric, SumMetric):
        metric.update(torch.ones(len(labels), device=labels.device))
    else:
        metric.update(scores, labels)


def _mixing(classes: int, mixup: float, cutmix: float, switch: float) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """Mixup, CutMix or a random choice of both, on whole batches; None where both are off."""
    both: list[Callable[..., tuple[Tensor, Tensor]]] = []
    if cutmix:
        both.append(v2.CutMix(alpha=cutmix, num_classes=classes))
    if mixup:
        both.append(v2.MixUp(alpha=mixup, num_classes=classes))
    if len(both) < 2:
        return both[0] if both else None
    either: Callable[..., tuple[Tensor, Tensor]] = v2.RandomChoice(both, p=[switch, 1 - switch])
    return either
