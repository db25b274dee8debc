"""The two ends of every comparison: train only the head, or train everything."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from lightning_petl.adapter import Adapter, Method, Target
from lightning_petl.errors import PETLError


class WithoutAdapters(Method):
    """A method that adds nothing to any layer."""

    def __init__(self) -> None:
        super().__init__(targets=())

    def build(self, target: Target, shared: nn.Module | None = None) -> Adapter:
        """Never called by `lightning_petl.inject`, since there are no targets.

        Raises:
            PETLError: Always.
        """
        raise PETLError(f"{type(self).__name__} adapts no layer", where=target.path)


class LinearProbe(WithoutAdapters):
    """Trains the head alone; the frozen backbone gives its features."""


class FullFineTuning(WithoutAdapters):
    """Trains every parameter of the backbone: the reference in accuracy, and in the size of a task's file."""

    def trained(self, model: nn.Module) -> Iterable[str]:
        """Every parameter."""
        return [name for name, _ in model.named_parameters()]
