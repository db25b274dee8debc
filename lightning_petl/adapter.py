"""The contract between a method and everything else: an Adapter per layer, a Method per model.

A method is defined by one function, `Adapter.merged`. Injection, merging, storage and counting walk one list of adapted
layers and know no method by name.
"""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from lightning_petl.affine import Affine
from lightning_petl.errors import ConfigError

JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]


@dataclass(frozen=True)
class Target:
    """One layer that an adapter is built for.

    Attributes:
        path: Module path in the plain backbone, such as ``blocks.0.attn.qkv``.
        site: ``attn`` or ``mlp`` where a site chose the layer, ``custom`` where a pattern did.
        in_features: Width of the layer's input.
        out_features: Width of the layer's output.
        has_bias: Whether the frozen layer has a bias.
        device: Device of the frozen layer, where the adapter is to be created.
        dtype: Dtype of the adapter's parameters: float64 for a float64 layer, float32 otherwise.
    """

    path: str
    site: str
    in_features: int
    out_features: int
    has_bias: bool
    device: torch.device
    dtype: torch.dtype


class Adapter(nn.Module, ABC):
    """What a method adds to one frozen affine layer.

    `merged` is the definition; `forward` and `consolidated` are derived from it unless a method has something cheaper.
    """

    @abstractmethod
    def merged(self, base: Affine) -> Affine:
        """The affine map of layer and adapter together, as in evaluation.

        Exact and pure: it changes neither operand, draws no random number, and computes in the wider of both dtypes.

        Args:
            base: The frozen layer, weight ``(out, in)`` and bias ``(out,)`` or None.
        """

    def forward(self, x: Tensor, base: Affine) -> Tensor:
        """Output of layer and adapter, ``(..., in)`` to ``(..., out)``; override it to be cheaper, or to drop out."""
        return self.merged(base)(x)

    def consolidated(self) -> Adapter:
        """A smaller and exactly equal adapter for storage; the adapter itself unless a method has one."""
        return self


class Method(ABC):
    """What a user chooses: where adapters go, and what they are.

    Arguments of a subclass's ``__init__`` must be JSON values (numbers, strings, booleans, None, sequences, mappings):
    they are written into adapter files and rebuild the method from there. They are recorded as they are passed, so a
    subclass need not store them.

    Args:
        targets: Regular expressions, each a full match on module paths; they override ``sites``.
        sites: Places that every backbone with blocks has: ``attn``, the input of the fused qkv projection, and ``mlp``,
            the input of the channel MLP's first layer.
    """

    petl_api: ClassVar[str] = "1"
    """Version of this contract that the method is written for."""

    _arguments: dict[str, object]

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        """Records the arguments, before any subclass's ``__init__`` runs."""
        self = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(self, *args, **kwargs)
        self._arguments = dict(list(bound.arguments.items())[1:])
        return self

    def __init__(self, targets: Sequence[str] | None = None, sites: Sequence[str] = ()) -> None:
        self.targets = None if targets is None else _names(targets, "targets")
        self.sites = _names(sites, "sites")

    @property
    def arguments(self) -> dict[str, JSON]:
        """The arguments that build this method again, defaults included, as JSON values.

        Raises:
            ConfigError: An argument is not a JSON value.
        """
        name = type(self).__name__
        found: dict[str, JSON] = {}
        for key, parameter in list(inspect.signature(type(self).__init__).parameters.items())[1:]:
            value = self._arguments.get(key, parameter.default)
            if value is inspect.Parameter.empty:
                continue
            try:
                found[key] = json.loads(json.dumps(value, allow_nan=False))
            except (TypeError, ValueError):
                raise ConfigError(f"argument {key} of {name} is {value!r}, not a JSON value", where=key) from None
        return found

    @abstractmethod
    def build(self, target: Target, shared: nn.Module | None = None) -> Adapter:
        """Creates the adapter of one layer, on ``target.device`` and in ``target.dtype``.

        Args:
            target: The layer.
            shared: What `shared` returned for this model.
        """

    def shared(self, targets: Sequence[Target]) -> nn.Module | None:
        """Modules that several adapters share, registered once on the model; None when there are none."""
        return None

    def trained(self, model: nn.Module) -> Iterable[str]:
        """Names of the backbone's own parameters that this method trains in place; they are stored with the adapter."""
        return ()

    def __repr__(self) -> str:
        inner = ", ".join(f"{key}={value!r}" for key, value in self._arguments.items())
        return f"{type(self).__name__}({inner})"


def _names(value: Sequence[str], argument: str) -> tuple[str, ...]:
    """A tuple of strings; a bare string is refused, since it would be read letter by letter."""
    if isinstance(value, str) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{argument} is {value!r}, not a list of strings", where=argument)
    return tuple(value)
