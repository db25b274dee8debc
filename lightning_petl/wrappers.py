"""What stands in the place of a frozen module: the module with its adapter."""

from __future__ import annotations

import inspect
from typing import Any, NoReturn, cast

from torch import Tensor, nn

from lightning_petl.adapter import Adapter, Method, Target
from lightning_petl.affine import Affine
from lightning_petl.errors import NotMergeable
from lightning_petl.layers import AffineLayer, OutputLayer, output_axis, over_features, read


class _WeightReadError(NotMergeable, AttributeError):
    """Something asked an adapted layer for its weight instead of calling it."""


class Adapted(nn.Module):
    """A frozen layer or module with its adapter, in its place.

    It has no ``weight`` and no ``bias`` on purpose: code that reads a layer's weight past the layer's own call would
    skip the adapter in silence while training, and get it after merging.

    Attributes:
        base: The frozen layer; where an adapter is shared, the module that holds the layers.
        adapter: What a method added to it.
        target: What the adapter was built for.
    """

    base: nn.Module
    adapter: Adapter

    def __init__(self, target: Target, base: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.target = target
        self.base = base
        self.adapter = adapter
        self.train(base.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes with its adapter; shapes as the plain module's."""
        raise NotImplementedError

    @property
    def path(self) -> str:
        """Module path in the plain backbone."""
        return self.target.path

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self.target.in_features

    @property
    def out_features(self) -> int:
        """Width of the output; of several layers, of all their outputs."""
        return self.target.out_features

    @property
    def shared(self) -> bool:
        """Whether several layers inside the module share the adapter."""
        return self.target.layers not in ((), (self.path,))

    def layers(self) -> dict[str, OutputLayer]:
        """The frozen layers that the adapter folds into, by their paths in the plain backbone."""
        named = self.target.inside.items()
        return {path: cast(OutputLayer, self.base.get_submodule(name)) for path, name in named}

    def affine(self) -> Affine:
        """The map of these layers, their outputs one after the other; of a single layer it shares memory."""
        maps = [read(layer) for layer in self.layers().values()]
        return maps[0] if len(maps) == 1 else Affine.stacked(maps)

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        try:
            return super().__getattr__(name)
        except AttributeError:
            target = self.__dict__.get("target")
            raise _WeightReadError(
                f"its {name} is read past the layer's call, so an adapter would be skipped",
                where=target.path if target is not None else "",
                fix="adapt other layers with sites= or targets=",
            ) from None


class AdaptedLayer(Adapted):
    """An affine layer with an adapter around its whole map."""

    base: AffineLayer

    def forward(self, x: Tensor) -> Tensor:
        """What the layer computes with its adapter; shapes as the plain layer's."""
        base = read(self.base)
        return over_features(self.base, x, lambda features: self.adapter(features, base))


class AdaptedOutputs(Adapted):
    """A layer with an adapter behind it; the adapter sees the layer's outputs along the last axis."""

    base: OutputLayer

    def __init__(self, target: Target, base: OutputLayer, adapter: Adapter) -> None:
        super().__init__(target, base, adapter)
        self.axis = output_axis(base)

    def forward(self, x: Tensor) -> Tensor:
        """What the layer computes with its adapter; shapes as the plain layer's."""
        out: Tensor = self.adapter(x, cast(Affine, self._features))
        return out.movedim(-1, self.axis)

    def _features(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        return out.movedim(self.axis, -1)


class AdaptedModule(Adapted):
    """A module with an adapter around it; where layers inside share the adapter, it acts on the module's input."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes with its adapter. The adapter gets the module's first input."""
        if args:
            x, args = args[0], args[1:]
        else:  # callers may name it, as in transformers' CLIP
            x = kwargs.pop(_first_parameter(type(self.base)))
        return self.adapter(x, cast(Affine, lambda changed: self.base(changed, *args, **kwargs)))

    def __bool__(self) -> bool:
        return True

    def _looped(self, *_: object) -> NoReturn:
        raise NotMergeable(
            "it is taken apart rather than called, so its adapter would be skipped",
            where=self.path,
            fix="call the model's plain forward, without gradient checkpointing or masks, or adapt each block",
        )

    __iter__ = __len__ = __getitem__ = _looped


def _first_parameter(kind: type[nn.Module]) -> str:
    return list(inspect.signature(kind.forward).parameters)[1]


def adapted_layers(model: nn.Module) -> dict[str, Adapted]:
    """The adapted layers by module path, in the order of the model's modules."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Adapted)}


def wrapper(method: Method, target: Target) -> type[Adapted]:
    """The class that puts an adapter of a method in its place."""
    if target.layers != (target.path,):
        return AdaptedModule
    return AdaptedOutputs if method.wraps == "outputs" else AdaptedLayer
