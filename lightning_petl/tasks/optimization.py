"""What the optimizer gets, and how the learning rate goes from the first step to the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from pytorch_lightning.cli import OptimizerCallable
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.poly_lr import PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from lightning_petl.errors import ConfigError

Schedule = Literal["epoch", "step"]
Annealing = Literal["cosine", "polynomial"]


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """AdamW as in RepAdapter's VTAB-1k recipe: learning rate 1e-3, weight decay 1e-4 on all that trains."""
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-4)


@dataclass(frozen=True)
class LearningRate:
    """A linear warm-up, and annealing from the optimizer's learning rate down to ``min_lr``; see `PETLTask`."""

    warmup_epochs: int
    warmup_lr: float
    warmup_prefix: bool
    min_lr: float
    schedule: Schedule
    annealing: Annealing
    power: float

    def __post_init__(self) -> None:
        for option, value, kinds in (
            ("schedule", self.schedule, get_args(Schedule)),
            ("annealing", self.annealing, get_args(Annealing)),
        ):
            if value not in kinds:
                raise ConfigError(f"{option} is {value!r}", where=f"model.{option}", fix=f"give {' or '.join(kinds)}")
        if not 0 < self.power < float("inf"):
            raise ConfigError(f"annealing_power is {self.power}", where="model.annealing_power", fix="give more than 0")

    def scheduler(self, optimizer: torch.optim.Optimizer, epochs: int, steps: int) -> Scheduler:
        """The schedule of a fit, one of timm's.

        Args:
            optimizer: Each of its groups starts from its own learning rate; all end at one.
            epochs: Epochs of the fit.
            steps: Steps of an epoch; unused by a schedule of epochs.
        """
        length = 1 if self.schedule == "epoch" else steps
        warmup = min(self.warmup_epochs, epochs)
        settings: dict[str, Any] = {
            "t_initial": max(1, epochs - warmup if self.warmup_prefix else epochs) * length,
            "lr_min": self.min_lr,
            "warmup_t": warmup * length,
            "warmup_lr_init": self.warmup_lr,
            "warmup_prefix": self.warmup_prefix,
        }
        if self.annealing == "polynomial":
            return PolyLRScheduler(optimizer, power=self.power, **settings)
        return CosineLRScheduler(optimizer, **settings)


def optimize(
    module: nn.Module, head: nn.Module, build: OptimizerCallable, decay_vectors: bool, head_lr: float
) -> torch.optim.Optimizer:
    """The optimizer over what trains.

    Args:
        module: What has the parameters.
        head: The part of it that has a learning rate of its own.
        build: Makes an optimizer of parameters or groups of them.
        decay_vectors: Whether weight decay acts on biases and other vectors too.
        head_lr: The head's learning rate, in multiples of the optimizer's.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    of_head = set() if head_lr == 1 else set(head.parameters())
    if decay_vectors and not of_head:
        return build(trained)
    matrices, vectors = ([p for p in trained if (p.dim() > 1) is wanted] for wanted in (True, False))
    if decay_vectors:
        groups = _split(trained, of_head)
    else:
        without = [group | {"weight_decay": 0.0} for group in _split(vectors, of_head)]
        groups = [*_split(matrices, of_head), *without]
    optimizer = build(groups)
    for group in optimizer.param_groups:
        if group["params"][0] in of_head:
            group["lr"] = group["lr"] * head_lr
    return optimizer


def _split(parameters: list[nn.Parameter], of_head: set[nn.Parameter]) -> list[dict[str, Any]]:
    """Groups of the parameters outside the head and in it, as far as there are any."""
    both = ([p for p in parameters if p not in of_head], [p for p in parameters if p in of_head])
    return [{"params": part} for part in both if part]
