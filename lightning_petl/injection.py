"""Putting adapters into a frozen backbone: the wrapper around a layer, freezing, and the list that all else walks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_petl import probe
from lightning_petl.adapter import Adapter, Method, Target
from lightning_petl.errors import ConfigError, NotMergeable, PETLError, PluginError
from lightning_petl.layers import AffineLayer, affine_layer, over_features, read
from lightning_petl.targets import find_targets
from lightning_petl.tensorfile import tensor_digest

SHARED = "petl_shared"
"""Name under which a method's shared modules are registered on the model, once."""

_RECORD = "_petl_injection"


class _WeightReadError(NotMergeable, AttributeError):
    """Something asked an adapted layer for its weight instead of calling it."""


class Adapted(nn.Module):
    """A frozen layer with its adapter, in the layer's place.

    It has no ``weight`` and no ``bias`` on purpose: code that reads a layer's weight past the layer's own call would
    skip the adapter in silence while training, and get it after merging.

    Attributes:
        base: The frozen layer.
        adapter: What a method added to it.
        path: Module path in the plain backbone.
    """

    base: AffineLayer
    adapter: Adapter

    def __init__(self, path: str, base: AffineLayer, adapter: Adapter) -> None:
        super().__init__()
        self.path = path
        self.base = base
        self.adapter = adapter
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """What the layer computes with its adapter; shapes as the plain layer's."""
        base = read(self.base)
        return over_features(self.base, x, lambda features: self.adapter(features, base))

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return read(self.base).in_features

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return read(self.base).out_features

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise _WeightReadError(
                f"its {name} is read past the layer's call, so an adapter would be skipped",
                where=self.__dict__.get("path", ""),
                fix="adapt other layers with sites= or targets=",
            ) from None


@dataclass
class Injection:
    """What `inject` did to a model, kept on the model.

    Attributes:
        method: The method.
        targets: The adapted layers, in order.
        trained: The backbone's own parameters that the method trains in place.
        required_grad: The parameters that could train before, so that a refused injection leaves no trace.
        buffers: Digest of each persistent buffer at injection, by its name in the plain backbone.
        extra: Tensors that were loaded with the adapter, such as the head's.
    """

    method: Method
    targets: list[Target]
    trained: tuple[str, ...]
    required_grad: list[nn.Parameter]
    buffers: dict[str, str]
    extra: tuple[str, ...] = ()


def inject(model: nn.Module, method: Method, inputs: tuple[Tensor, ...] | None = None) -> nn.Module:
    """Freezes a model, its head too, and puts a method's adapters into it, in place.

    The model is run once on meta tensors, which costs and changes nothing, to find layers whose weight is read past
    their call.

    Args:
        model: A plain backbone.
        method: An instance of a method, such as ``RepAdapter(scale=0.5)``.
        inputs: Positional inputs of the model for that run; guessed where left out.

    Returns:
        The model itself.

    Raises:
        PETLError: The model has adapters already.
        TargetNotFound: A pattern matches nothing, or the backbone has none of the method's sites.
        NotMergeable: A layer cannot take an adapter that folds. The model is left as it was.
    """
    if not isinstance(method, Method):
        raise ConfigError(
            f"{method!r} is no instance of a Method", where="method", fix="pass one, such as RepAdapter()"
        )
    if _RECORD in model.__dict__ or adapted_layers(model):
        raise PETLError("this model has adapters already", fix="merge them first, or start from a plain backbone")
    targets = find_targets(model, method)
    inputs = probe.usable_inputs(model, inputs) if targets else None
    shared = method.shared(targets)
    adapters = {target.path: _build(method, target, shared) for target in targets}
    trained = _trained(model, method)
    required_grad = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.__dict__[_RECORD] = Injection(method, targets, trained, required_grad, _buffer_digests(model))
    try:
        _wrap(model, adapters, shared, trained)
        if inputs is not None:
            _check_calls(model, inputs)
    except BaseException:
        eject(model)
        raise
    return model


def _buffer_digests(model: nn.Module) -> dict[str, str]:
    """Digests of persistent buffers, so that one which training changes, as a BatchNorm's, is known and stored."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {
        name: tensor_digest(tensor)
        for name, tensor in model.state_dict().items()
        if name not in parameters and isinstance(tensor, Tensor) and not tensor.is_meta
    }


def _build(method: Method, target: Target, shared: nn.Module | None) -> Adapter:
    adapter = method.build(target, shared)
    if not isinstance(adapter, Adapter):
        raise PluginError(
            f"{type(method).__name__}.build returned {type(adapter).__name__}, no Adapter", where=target.path
        )
    return adapter


def _trained(model: nn.Module, method: Method) -> tuple[str, ...]:
    names, own = tuple(method.trained(model)), dict(model.named_parameters())
    unknown = [name for name in names if name not in own]
    if unknown:
        raise PluginError(
            f"{type(method).__name__} trains parameters that the backbone lacks: {', '.join(unknown[:5])}"
        )
    return names


def _wrap(model: nn.Module, adapters: dict[str, Adapter], shared: nn.Module | None, trained: Iterable[str]) -> None:
    own = dict(model.named_parameters())
    model.requires_grad_(False)
    for name in trained:
        own[name].requires_grad_(True)
    for path, adapter in adapters.items():
        _replace(model, path, Adapted(path, affine_layer(path, model.get_submodule(path)), adapter))
    if shared is not None:
        model.add_module(SHARED, shared)


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent)._modules[name] = module


def _check_calls(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Runs the injected model: an adapted layer raises where its weight is read, and each must be called."""
    called: set[str] = set()
    layers = adapted_layers(model)
    # No hooks: torch's transformer layers read weights past the call, but not where a hook would see that.
    for path, layer in layers.items():
        layer.__dict__["forward"] = _recorded(path, layer.forward, called)
    try:
        for training in (False, True):
            probe.forward(model, inputs, training)
    finally:
        for layer in layers.values():
            del layer.__dict__["forward"]
    for path in layers:
        if path not in called:
            reason = "the model's forward never calls it: it is unused, or its weight is read past the layer's call"
            raise NotMergeable(reason, where=path, fix="adapt other layers with sites= or targets=")


def _recorded(path: str, forward: Callable[[Tensor], Tensor], called: set[str]) -> Callable[[Tensor], Tensor]:
    def recorded(x: Tensor) -> Tensor:
        called.add(path)
        return forward(x)

    return recorded


def eject(model: nn.Module) -> None:
    """Takes adapters out again without merging them: layers, shared modules and what may train are as before."""
    record = injection_of(model)
    for path, layer in adapted_layers(model).items():
        _replace(model, path, layer.base)
    leave(model)
    model.requires_grad_(False)
    for parameter in record.required_grad:
        parameter.requires_grad_(True)


def leave(model: nn.Module) -> None:
    """Forgets an injection whose adapters are out of the layers."""
    model._modules.pop(SHARED, None)
    model.__dict__.pop(_RECORD, None)


def restore(model: nn.Module, layers: Iterable[tuple[str, nn.Module]]) -> None:
    """Puts plain layers in the places of their adapted ones."""
    for path, layer in layers:
        _replace(model, path, layer)


def injection_of(model: nn.Module) -> Injection:
    """The record of a model's injection.

    Raises:
        PETLError: Nothing was injected, or it was merged already.
    """
    record = model.__dict__.get(_RECORD)
    if record is None:
        raise PETLError("this model has no adapters: none were injected, or they are merged already")
    assert isinstance(record, Injection)
    return record


def adapted_layers(model: nn.Module) -> dict[str, Adapted]:
    """The adapted layers by module path, in the order of the model's modules."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Adapted)}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name, each shared one once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
