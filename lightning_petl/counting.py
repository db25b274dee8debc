"""How many parameters a method trains, in the columns that papers count differently."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_petl.adapter import Method
from lightning_petl.errors import PETLError
from lightning_petl.injection import SHARED, inject, injection_of, trainable
from lightning_petl.plugins import MethodInfo
from lightning_petl.wrappers import adapted_layers


@dataclass(frozen=True)
class Count:
    """What one setting of a method trains on one backbone.

    Papers differ in what they count: RepAdapter's table the weights alone, Consolidator's weights and biases, ARC's all
    and the head.

    Attributes:
        name: The method, or one of its named settings.
        weights: Numbers in the adapters that are no biases.
        biases: Biases in the adapters.
        shared: Numbers in modules that several adapters share.
        in_place: The backbone's own parameters that the method trains.
        head: Parameters of the head, weights and biases.
        backbone: Parameters of the frozen backbone without its head.
        error: Why the method does not fit this backbone; all numbers of the method are 0 then.
    """

    name: str
    weights: int
    biases: int
    shared: int
    in_place: int
    head: int
    backbone: int
    error: str | None = None

    @property
    def without_head(self) -> int:
        """All that the method trains."""
        return self.weights + self.biases + self.shared + self.in_place

    @property
    def with_head(self) -> int:
        """All that a task trains."""
        return self.without_head + self.head

    @property
    def percent(self) -> float:
        """What the method trains, in per cent of the backbone, both without the head."""
        return 100 * self.without_head / self.backbone if self.backbone else 0.0


def count_all(infos: Iterable[MethodInfo], build: Callable[[], nn.Module], head: str) -> Iterator[Count]:
    """Counts each installed method with its default arguments, then each setting that it names.

    Args:
        infos: The methods, imported; those that failed are left out.
        build: Builds the plain backbone; on the meta device it takes no memory.
        head: Module path of the backbone's head.
    """
    for info in infos:
        if info.cls is None:
            continue
        settings: dict[str, Mapping[str, Any]] = {info.name: {}, **info.cls.variants}
        for name, arguments in settings.items():
            model = build()
            head_size = sum(parameter.numel() for parameter in model.get_submodule(head).parameters())
            size = sum(parameter.numel() for parameter in model.parameters()) - head_size
            try:
                yield _count(name, model, info.cls(**arguments), head, head_size, size)
            except PETLError as error:
                yield Count(name, 0, 0, 0, 0, head_size, size, str(error))


def _count(name: str, model: nn.Module, method: Method, head: str, head_size: int, size: int) -> Count:
    inject(model, method)
    adapters = tuple(f"{path}.adapter." for path in adapted_layers(model))
    columns = dict.fromkeys(("weights", "biases", "shared", "in_place"), 0)
    for parameter, tensor in trainable(model).items():
        if parameter.startswith(f"{SHARED}."):
            columns["shared"] += tensor.numel()
        elif parameter.startswith(adapters):
            columns["biases" if parameter.endswith("bias") else "weights"] += tensor.numel()
        elif parameter in injection_of(model).trained and not parameter.startswith(f"{head}."):
            columns["in_place"] += tensor.numel()
    return Count(name, head=head_size, backbone=size, error=None, **columns)
