"""The contract between a method and everything else: an Adapter per layer, a Method per model.

A method is defined by one function, `Adapter.merged`. Injection, merging, storage and counting walk one list of adapted
layers and know no method by name.
"""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from lightning_petl.affine import Affine
from lightning_petl.errors import ConfigError, NotMergeable, PETLError

Wraps = Literal["layer", "outputs", "module"]
Separate = Literal["refuse", "share", "each"]
JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]


@dataclass(frozen=True)
class Target:
    """One place that an adapter is built for: a layer, several layers that read one input, or a whole module.

    Attributes:
        path: Module path in the plain backbone, such as ``blocks.0.attn.qkv``.
        site: ``attn`` or ``mlp`` where a site chose the layer, ``custom`` where a pattern did.
        in_features: Width of the input.
        out_features: Width of the output; of several layers, of their outputs one after the other.
        has_bias: Whether the frozen layer has a bias; of several layers, whether any has.
        device: Device of the frozen layer, where the adapter is to be created.
        dtype: Dtype of the adapter's parameters: float64 for a float64 layer, float32 otherwise.
        layers: The layers that the adapter folds into: the path itself, or the separate layers inside the module at
            ``path`` that read its input, such as its query, key and value; empty for a module of which nothing folds.
    """

    path: str
    site: str
    in_features: int
    out_features: int
    has_bias: bool
    device: torch.device
    dtype: torch.dtype
    layers: tuple[str, ...] = ()

    @property
    def inside(self) -> dict[str, str]:
        """For each of `layers`, its path inside the module at ``path``; empty for that module itself."""
        return {layer: layer.removeprefix(self.path).removeprefix(".") for layer in self.layers}


@dataclass(frozen=True, eq=False)
class LowRank:
    """What an adapter adds to an affine layer, where that is of low rank: ``x`` gives ``scale · (up (down x) + bias)``.

    It is what adapters are exchanged as with other packages, which know a LoRA and no method of ours.

    Attributes:
        down: ``(rank, in)``.
        up: ``(out, rank)``.
        bias: ``(out,)``, or None.
        scale: Factor of all three; 1 for a method that has none of its own to keep.
    """

    down: Tensor
    up: Tensor
    bias: Tensor | None = None
    scale: float = 1.0


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
        """Output of layer and adapter, ``(..., in)`` to ``(..., out)``; override it to be cheaper, or to drop out.

        A method that wraps outputs, or that separate layers share, is given something that can be called and nothing
        more: its forward calls ``base`` once, and reads neither weight nor bias.
        """
        return self.merged(base)(x)

    def consolidated(self) -> Adapter:
        """A smaller and exactly equal adapter for storage; the adapter itself unless a method has one."""
        return self

    def low_rank(self, base: Affine) -> LowRank | None:
        """``merged(base)`` without ``base``, in factors; None where a method has no such form.

        Args:
            base: The frozen layer; of several layers that share the adapter, their outputs one after the other.
        """
        return None


class ModuleAdapter(Adapter):
    """An adapter that does not fold: it stands around a whole module, such as an MLP, an attention or a block.

    Its method says ``wraps = "module"``. It trains, is stored, loaded and tested as any other; only merging is refused.
    """

    @abstractmethod
    def forward(self, x: Tensor, base: Callable[[Tensor], Any]) -> Any:
        """Output of module and adapter.

        Args:
            x: The module's first input.
            base: The frozen module, with its further inputs bound.
        """

    def merged(self, base: Affine) -> Affine:
        """Refuses.

        Raises:
            NotMergeable: Always.
        """
        raise NotMergeable(f"{type(self).__name__} does not fold: it wraps a module, not an affine layer")


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

    wraps: ClassVar[Wraps] = "layer"
    """What an adapter stands around.

    - ``layer``: one affine layer, a Linear or a 1x1 convolution, over its last axis.
    - ``outputs``: a layer whose outputs it changes one by one, any convolution and LayerNorm included; its affine map
      then has one row an output, and what the columns are is the layer's own business.
    - ``module``: any module that `targets` match. Such a method does not fold, and its adapters are `ModuleAdapter`.
    """

    separate: ClassVar[Separate] = "refuse"
    """What to do where a site's input is read by several layers, such as a query, a key and a value.

    - ``refuse``: raise `NotMergeable`.
    - ``share``: build one adapter in front of all; it is computed once, and folds into each. Only for adapters that
      act on the input: ``forward(x, base)`` is ``base(f(x))``.
    - ``each``: build one adapter for each.
    """

    variants: ClassVar[Mapping[str, Mapping[str, JSON]]] = {}
    """Named settings that papers report, as arguments; they are counted beside the default."""

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

    @property
    def folds(self) -> bool:
        """Whether its adapters fold into the backbone."""
        return self.wraps != "module"

    def __repr__(self) -> str:
        inner = ", ".join(f"{key}={value!r}" for key, value in self._arguments.items())
        return f"{type(self).__name__}({inner})"


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


def _names(value: Sequence[str], argument: str) -> tuple[str, ...]:
    """A tuple of strings; a bare string is refused, since it would be read letter by letter."""
    if isinstance(value, str) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{argument} is {value!r}, not a list of strings", where=argument)
    return tuple(value)
