"""The two ends of every comparison: train only the head, or train everything."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from lightning_petl.adapter import WithoutAdapters


class LinearProbe(WithoutAdapters):
    """Trains the head alone; the frozen backbone gives its features."""


class FullFineTuning(WithoutAdapters):
    """Trains every parameter of the backbone: the reference in accuracy, and in the size of a task's file."""

    def trained(self, model: nn.Module) -> Iterable[str]:
        """Every parameter."""
        return [name for name, _ in model.named_parameters()]
