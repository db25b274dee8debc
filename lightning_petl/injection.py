"""Putting adapters into a frozen backbone and taking them out again: freezing, the record, and what may train."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn

from lightning_petl import calls, probe
from lightning_petl.adapter import Adapter, Method, ModuleAdapter, Target
from lightning_petl.calls import Call
from lightning_petl.errors import ConfigError, NotMergeable, PETLError, PluginError
from lightning_petl.plugins import API
from lightning_petl.targets import find_targets
from lightning_petl.tensorfile import tensor_digest
from lightning_petl.wrappers import adapted_layers, wrapper

SHARED = "petl_shared"
"""Name under which a method's shared modules are registered on the model, once."""

_RECORD = "_petl_injection"


@dataclass
class Injection:
    """What `inject` did to a model, kept on the model.

    Attributes:
        method: The method.
        targets: The adapted layers, in order.
        trained: The backbone's own parameters that the method trains in place.
        required_grad: The parameters that could train before, so that a refused injection leaves no trace.
        buffers: Digest of each persistent buffer at injection, by its name in the plain backbone.
        calls: The call of each module inside which several layers share an adapter.
        extra: Tensors that were loaded with the adapter, such as the head's.
    """

    method: Method
    targets: list[Target]
    trained: tuple[str, ...]
    required_grad: list[nn.Parameter]
    buffers: dict[str, str]
    calls: dict[str, Call] = field(default_factory=dict)
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
        PluginError: The method breaks the contract, or is written for another version of it.
        TargetNotFound: A pattern matches nothing, or the backbone has none of the method's sites.
        NotMergeable: A layer cannot take an adapter that folds. The model is left as it was.
    """
    if not isinstance(method, Method):
        raise ConfigError(
            f"{method!r} is no instance of a Method", where="method", fix="pass one, such as RepAdapter()"
        )
    if method.petl_api != API:
        name = type(method).__name__
        raise PluginError(f"{name} is written for plugin API {method.petl_api!r}, and this lightning-petl has {API!r}")
    refuse_adapted(model)
    targets, inputs = _targets(model, method, inputs)
    shared = method.shared(targets)
    adapters = {target.path: _build(method, target, shared) for target in targets}
    trained = _trained(model, method)
    required_grad = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.__dict__[_RECORD] = Injection(method, targets, trained, required_grad, _buffer_digests(model))
    try:
        _wrap(model, targets, adapters, shared)
        if inputs is not None:
            model.__dict__[_RECORD].calls = calls.check(model, inputs)
    except BaseException:
        eject(model)
        raise
    return model


def refuse_adapted(model: nn.Module) -> None:
    """Refuses a model that is no plain backbone.

    Raises:
        PETLError: It has adapters.
    """
    if _RECORD in model.__dict__ or adapted_layers(model):
        raise PETLError("this model has adapters already", fix="merge them first, or start from a plain backbone")


def _targets(
    model: nn.Module, method: Method, inputs: tuple[Tensor, ...] | None
) -> tuple[list[Target], tuple[Tensor, ...] | None]:
    """The places to adapt, and inputs to run the model with: None where nothing is adapted or no guess is accepted."""
    if method.folds:
        targets = find_targets(model, method)
        inputs = probe.usable_inputs(model, inputs) if targets else None
    else:
        inputs = probe.usable_inputs(model, inputs)
        targets = find_targets(model, method, {} if inputs is None else calls.module_shapes(model, inputs))
    sharing = [target.path for target in targets if len(target.layers) > 1]
    if sharing and inputs is None:
        reason = "that its layers read one input can only be seen by running the model, and no inputs were found for it"
        raise NotMergeable(reason, where=sharing[0], fix="pass inputs=")
    return targets, inputs


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
    if isinstance(adapter, ModuleAdapter) == method.folds:
        declared = f"{type(method).__name__} wraps {method.wraps!r}"
        raise PluginError(f"{declared}, which {type(adapter).__name__} does not fit", where=target.path)
    return adapter


def _trained(model: nn.Module, method: Method) -> tuple[str, ...]:
    names, own = tuple(method.trained(model)), dict(model.named_parameters())
    unknown = [name for name in names if name not in own]
    if unknown:
        raise PluginError(
            f"{type(method).__name__} trains parameters that the backbone lacks: {', '.join(unknown[:5])}"
        )
    return names


def _wrap(model: nn.Module, targets: list[Target], adapters: dict[str, Adapter], shared: nn.Module | None) -> None:
    record = injection_of(model)
    if shared is not None and isinstance(model, nn.Sequential):
        reason = f"a Sequential would run what the adapters of {type(record.method).__name__} share as one more layer"
        raise PETLError(reason, where="model", fix="put it into a module with a forward of its own")
    own = dict(model.named_parameters())
    model.requires_grad_(False)
    for name in record.trained:
        own[name].requires_grad_(True)
    for target in targets:
        kind = wrapper(record.method, target)
        _replace(model, target.path, kind(target, model.get_submodule(target.path), adapters[target.path]))
    if shared is not None:
        model.add_module(SHARED, shared)


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent)._modules[name] = module


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


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name, each shared one once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
