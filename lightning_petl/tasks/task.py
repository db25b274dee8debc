"""What every task shares: a frozen backbone with a method's adapters, its optimizer, modes and checkpoints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import OptimizerCallable
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lightning_petl.adapter import JSON, Adapter, Method
from lightning_petl.backbones import Architecture, TimmArgument
from lightning_petl.data.input_config import InputConfig
from lightning_petl.data.module import PETLDataModule
from lightning_petl.errors import ConfigError, PETLError
from lightning_petl.injection import inject
from lightning_petl.store import MERGED_FORMAT, load_adapter, load_merged, tensor_digests
from lightning_petl.tasks import checkpoint as checkpoints
from lightning_petl.tasks import random_state, recorded
from lightning_petl.tasks.further import train_further
from lightning_petl.tasks.optimization import Annealing, LearningRate, Schedule, adamw, optimize
from lightning_petl.tasks.single_samples import refuse_single

BackboneMode = Literal["train", "eval", "bn_eval"]


class PETLTask(pl.LightningModule, ABC):
    """A frozen backbone, a method, and how they are trained.

    Adapters are injected when the task is built, so that optimizers see them. Checkpoints hold what trains, and are
    compared with the task in both directions when they are loaded.

    Args:
        backbone: timm's name of a model.
        method: What adapts it.
        backbone_args: Keyword arguments of the timm model, such as ``{"img_size": 32, "drop_path_rate": 0.1}``.
        pretrained: True for timm's own weights; a file, or ``package:path`` for one inside a package; False for none.
        weights: An ``adapter.safetensors`` or ``merged.safetensors`` to test, validate or predict with.
        classes: Names of the classes, in the order of the head's outputs; the data module gives them in the CLI.
        num_classes: Number of classes; follows from ``classes`` where those are given.
        optimizer: Builds the optimizer from the parameters that train.
        head_lr: Learning rate of the head, in multiples of the optimizer's.
        warmup_epochs: Epochs of linear warm-up.
        warmup_lr: Learning rate at the start of the warm-up.
        warmup_prefix: Whether the annealing starts at the end of the warm-up, as in ARC's recipe, rather than with the
            first epoch, which the warm-up then covers.
        min_lr: Learning rate at the end, of the head too.
        annealing: ``cosine``, or ``polynomial`` as in the recipes of segmentation: ``(1 - part done) ** power``.
        annealing_power: The power of the polynomial.
        schedule: Whether the learning rate changes with each epoch, as in RepAdapter's and Consolidator's recipes, or
            with each step, as in ARC's.
        decay_vectors: Whether weight decay acts on biases and other vectors too. timm's optimizers, and with them
            Consolidator's recipe, leave these out.
        backbone_mode: Mode of the backbone's modules in training. ``bn_eval``: training mode, so that drop-path acts,
            but frozen BatchNorm uses its stored statistics. ``eval``: evaluation mode. ``train``: training mode, in
            which BatchNorm statistics drift, and are stored with the adapter. A head always trains, its BatchNorm too.
        train_parameters: Parameters of the backbone that train besides adapters and head, such as
            ``["fc_norm.*"]`` or ``[".*bias"]``: regular expressions, each a full match on names of the plain
            backbone's parameters. They are stored with the adapter. The weight of an adapted layer is refused.
    """

    takes: ClassVar[str] = ""
    """What its samples are, as `PETLDataModule.gives` says it; empty takes any."""

    monitor: ClassVar[str] = "val/acc1"
    """The metric that checkpoints are chosen by, the largest first, where no other is given."""

    backbone: nn.Module

    def __init__(
        self,
        backbone: str,
        method: Method,
        backbone_args: dict[str, TimmArgument] | None = None,
        pretrained: bool | str = True,
        weights: str | None = None,
        classes: Sequence[str] | None = None,
        num_classes: int | None = None,
        optimizer: OptimizerCallable = adamw,
        head_lr: float = 1.0,
        warmup_epochs: int = 10,
        warmup_lr: float = 1e-6,
        warmup_prefix: bool = False,
        min_lr: float = 1e-5,
        annealing: Annealing = "cosine",
        annealing_power: float = 0.9,
        schedule: Schedule = "epoch",
        decay_vectors: bool = True,
        backbone_mode: BackboneMode = "bn_eval",
        train_parameters: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if not 0 < head_lr < float("inf"):
            raise ConfigError(f"head_lr is {head_lr}", where="model.head_lr", fix="give more than 0, such as 10")
        self.method, self.optimizer_of, self.decay_vectors, self.head_lr = method, optimizer, decay_vectors, head_lr
        self.learning_rate = LearningRate(
            warmup_epochs, warmup_lr, warmup_prefix, min_lr, schedule, annealing, annealing_power
        )
        self.backbone_mode, self.train_parameters = backbone_mode, tuple(train_parameters)
        self.classes = None if classes is None else tuple(classes)
        self.num_classes = _count(self.classes, num_classes)
        self.weights = weights
        self.weights_header = None if weights is None else recorded.check_weights(weights, self)
        merged = self.weights_header is not None and self.weights_header["format"] == MERGED_FORMAT
        self.architecture = self.choose_architecture(backbone, dict(backbone_args or {}), self.num_classes)
        if self.weights_header is not None:
            found = self.weights_header.get("backbone")
            recorded.check_backbone(found, self.architecture.record(), "file", f"{weights}: backbone")
        self.backbone = self.architecture.build(not merged and pretrained)
        self.input_config = self.architecture.input_config(self.backbone)
        self.head = self.architecture.head(self.backbone)
        self.trained_further: tuple[str, ...] = ()
        self._adapt(merged)
        self._random: list[dict[str, Tensor]] | None = None
        self._dtypes = {parameter.dtype for parameter in self.backbone.parameters()}
        # Whatever a checkpoint lacks is compared by name in on_load_checkpoint; the frozen rest is not in it.
        self.strict_loading = False

    @property
    def stored(self) -> tuple[str, ...]:
        """What an adapter file holds of the backbone besides adapters: the head, and what trains further."""
        return self.head, *self.trained_further

    @abstractmethod
    def choose_architecture(self, name: str, arguments: dict[str, TimmArgument], num_classes: int) -> Architecture:
        """The backbone and head to train. Called once, by the constructor of this class.

        Args:
            name: As given, ``model.backbone``.
            arguments: As given, ``model.backbone_args``.
            num_classes: Number of classes.
        """

    def _adapt(self, merged: bool) -> None:
        if merged:
            load_merged(self.backbone, cast(str, self.weights))
            self.backbone.requires_grad_(False)
        elif self.weights is not None:
            load_adapter(self.backbone, self.weights)
        else:
            inject(self.backbone, self.method)
            self.backbone.get_submodule(self.head).requires_grad_(True)
            self.trained_further = train_further(self.backbone, self.train_parameters)

    def task_record(self) -> dict[str, JSON]:
        """What a consumer needs to predict: the kind of task, class names, and how samples become inputs."""
        inputs = self.inputs_record() or {"input": cast(JSON, self.input_config.to_dict())}
        classes: JSON = None if self.classes is None else list(self.classes)
        return {"kind": type(self).__name__, "classes": classes, "num_classes": self.num_classes, **inputs}

    def inputs_record(self) -> dict[str, JSON]:
        """How the trainer's data module makes inputs of samples; empty without one that says it."""
        data = getattr(self._trainer, "datamodule", None)
        if isinstance(data, PETLDataModule):
            return data.inputs_record()
        config = getattr(data, "input_config", None)
        return {"input": cast(JSON, config.to_dict())} if isinstance(config, InputConfig) else {}

    def setup(self, stage: str) -> None:
        """Says where samples become inputs in another way than when the weights were trained.

        Raises:
            ConfigError: The data module gives samples of another kind than the task takes.
        """
        data = getattr(self._trainer, "datamodule", None)
        if isinstance(data, PETLDataModule) and self.takes != data.gives and self.takes and data.gives:
            raise ConfigError(
                f"{type(self).__name__} takes {self.takes}, and {type(data).__name__} gives {data.gives}",
                where="model.class_path, data.class_path",
                fix="choose a task and data that fit together",
            )
        if self.weights_header is not None:
            recorded.warn_of_inputs(self.weights_header.get("task"), self.inputs_record(), str(self.weights))

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores ``(batch, classes, ...)`` of inputs ``(batch, ...)``, such as images ``(batch, 3, height, width)``."""
        return self.architecture.run(self.backbone, inputs)

    def inputs_of(self, batch: Any) -> Tensor:
        """What `forward` gets of an evaluation batch; the batch's first part here."""
        return cast(Tensor, batch[0])

    def run_in_training(self, inputs: Tensor) -> object:
        """Runs all of the model that a training step runs of inputs."""
        return self(inputs)

    @abstractmethod
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch, a scalar."""

    def log_loss(self, loss: Tensor, samples: int) -> None:
        """Logs the loss of a training batch as ``train/loss``.

        Args:
            loss: A scalar.
            samples: Size of the batch.

        Raises:
            PETLError: It is not finite.
        """
        if not torch.isfinite(loss):
            fix = "lower the learning rate or the method's scale; what was saved before stays"
            raise PETLError(
                f"the loss is {loss.item()}", where=f"epoch {self.current_epoch}, step {self.global_step}", fix=fix
            )
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=True, sync_dist=True, batch_size=samples)

    # -- optimizer and schedule ----------------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over what trains, with its warm-up and annealing.

        Raises:
            ConfigError: Nothing trains, or ``trainer.max_epochs`` is not set.
        """
        epochs = self.trainer.max_epochs
        if self.weights is not None:
            fix = "resume training with --ckpt_path, or leave model.weights out"
            raise ConfigError("weights serve testing and prediction, not training", where="model.weights", fix=fix)
        if not epochs or epochs < 1:
            raise ConfigError(
                "the learning rate needs a number of epochs", where="trainer.max_epochs", fix="set it above 0"
            )
        head = self.backbone.get_submodule(self.head)
        optimizer = optimize(self, head, self.optimizer_of, self.decay_vectors, self.head_lr)
        by_step = self.learning_rate.schedule == "step"
        steps = int(self.trainer.estimated_stepping_batches) // epochs if by_step else 1
        scheduler = self.learning_rate.scheduler(optimizer, epochs, steps)
        schedule = {"scheduler": scheduler, "interval": self.learning_rate.schedule}
        return cast(OptimizerLRScheduler, {"optimizer": optimizer, "lr_scheduler": schedule})

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Sets the learning rate of the coming epoch or step; timm's schedules are functions of its number."""
        by_step = self.learning_rate.schedule == "step"
        scheduler.step(epoch=self.global_step if by_step else self.current_epoch + 1)

    # -- modes and frozenness ------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Sets the modes, which Lightning leaves as they are, and remembers the frozen tensors.

        Raises:
            ConfigError: The trainer turned the frozen weights into others, of another precision.
        """
        found = {parameter.dtype for parameter in self.backbone.parameters()}
        if found != self._dtypes:
            names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))
            fix = "leave the weights as they are: use 32-true, bf16-mixed or 16-mixed"
            raise ConfigError(f"the frozen weights became {names}", where="trainer.precision", fix=fix)
        self.train()
        if self.backbone_mode == "eval":
            self.backbone.eval()
        for path, module in self.backbone.named_modules():
            if isinstance(module, Adapter) or checkpoints.trains(module) or checkpoints.within(path, self.head):
                module.train()
            elif isinstance(module, nn.modules.batchnorm._NormBase) and self.backbone_mode == "bn_eval":
                module.eval()
        self._frozen = self._frozen_digests()
        self._batches_checked = False

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Looks, before the first step, whether a batch of one sample comes that a BatchNorm cannot take.

        Raises:
            ConfigError: It does.
        """
        if not self._batches_checked:
            self._batches_checked = True
            refuse_single(self.trainer, self.backbone, self.run_in_training, batch)

    def on_fit_end(self) -> None:
        """Compares the frozen tensors with those at the start.

        Raises:
            PETLError: One changed.
        """
        changed = [name for name, digest in self._frozen_digests().items() if self._frozen[name] != digest]
        if changed:
            raise PETLError(
                f"{len(changed)} frozen tensors changed in training, {changed[0]} first", where="model.backbone"
            )

    def _frozen_digests(self) -> dict[str, str]:
        return tensor_digests(self.backbone, leave_out=checkpoints.kept_names(self))

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what trains, a record in plain values of what it belongs to, and where random numbers are."""
        checkpoints.reduce(checkpoint, self)
        checkpoint[random_state.KEY] = random_state.states(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another backbone, method or head, or with other tensors than this task trains."""
        checkpoints.check(checkpoint, self)
        self._random = checkpoint.get(random_state.KEY)

    def on_train_start(self) -> None:
        """Goes on with the random numbers where the checkpoint left them."""
        if self._random is not None:
            found, self._random = self._random, None
            random_state.restore(found, self.device, self.trainer.world_size, self.trainer.global_rank)


def _count(classes: tuple[str, ...] | None, num_classes: int | None) -> int:
    """The number of classes, from their names or as given; both must agree."""
    if classes is None and num_classes is None:
        raise ConfigError("the number of classes is unknown", where="model.num_classes", fix="set it, or give classes")
    if classes is not None and num_classes not in (None, len(classes)):
        fix = "leave model.num_classes out, or choose the data it belongs to"
        raise ConfigError(
            f"num_classes is {num_classes}, the data has {len(classes)}", where="model.num_classes", fix=fix
        )
    count = len(classes) if classes is not None else cast(int, num_classes)
    if count < 2:
        fix = "give two classes or more, what belongs to none (the background) among them"
        raise ConfigError(f"{count} classes leave nothing to tell apart", where="model.num_classes", fix=fix)
    return count
