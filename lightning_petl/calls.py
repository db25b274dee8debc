"""What one run of a model tells: that adapted layers are called, and that those which share an adapter read one input.

Found by running rather than by a list of names, since any model may read a layer's weight past the layer's call.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_petl import probe
from lightning_petl.affine import Affine, relative_error
from lightning_petl.errors import NotMergeable, PluginError
from lightning_petl.layers import read, write
from lightning_petl.targets import Shapes
from lightning_petl.wrappers import Adapted, adapted_layers

PROVEN = 1e-9
"""Largest difference, relative and in float64, of two ways to compute what must be one thing."""

_FIX = "adapt other layers with sites= or targets="


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a module, tensors on the meta device."""

    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any] = field(default_factory=dict)

    def example(self, like: Tensor, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same call with random numbers in place of the first tensor, and zeros in place of others."""
        first = True

        def filled(value: object) -> object:
            nonlocal first
            if not isinstance(value, Tensor):
                return value
            if first and value.is_floating_point():
                first = False
                return torch.randn(value.shape, generator=generator, dtype=torch.float64).to(like)
            dtype = like.dtype if value.is_floating_point() else value.dtype
            return torch.zeros(value.shape, dtype=dtype, device=like.device)

        arguments, keywords = pytree.tree_map(filled, (self.arguments, dict(self.keywords)))
        return arguments, keywords


def module_shapes(model: nn.Module, inputs: tuple[Tensor, ...]) -> Shapes:
    """Widths of the first input and the output of each module that a plain model calls, by path.

    Modules that see ``(batch, channels, height, width)`` are left out: their last axis holds no features.
    """
    shapes: dict[str, tuple[int, int]] = {}

    def recorded(path: str, module: nn.Module) -> Callable[..., Any]:
        forward = module.forward
        of_images = any(isinstance(each, nn.Conv2d | nn.Conv3d) for each in _first_weights(module))

        def run(*arguments: Any, **keywords: Any) -> Any:
            out = forward(*arguments, **keywords)
            x = next((value for value in (*arguments, *keywords.values()) if isinstance(value, Tensor)), None)
            first = _first_tensor(out)
            if x is not None and first is not None and x.dim() > 1 and not (of_images and x.dim() > 3):
                shapes[path] = (x.shape[-1], first.shape[-1])
            return out

        return run

    with _in_place_of_forward({module: recorded(path, module) for path, module in model.named_modules() if path}):
        probe.forward(model, inputs)
    return shapes


def _first_weights(module: nn.Module) -> Iterator[nn.Module]:
    """The first module inside that has a weight matrix."""
    for each in module.modules():
        if isinstance(each, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            yield each
            return


def _first_tensor(out: object) -> Tensor | None:
    return next((value for value in pytree.tree_leaves(out) if isinstance(value, Tensor)), None)


@contextmanager
def _in_place_of_forward(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Stands functions in for modules' forward: torch's transformer layers take another path where they see a hook."""
    for module, forward in forwards.items():
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module in forwards:
            del module.__dict__["forward"]


def check(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Call]:
    """Runs an injected model in evaluation and in training.

    An adapted layer raises where its weight is read; here it is seen that each is called, and of layers that share an
    adapter, that all read what the adapter gives, and nothing else does.

    Returns:
        The call of each module inside which layers share an adapter.

    Raises:
        NotMergeable: One does not.
        PluginError: An adapter that is to be shared does not act on the input alone.
    """
    watch = _Watch(adapted_layers(model))
    first = next((layer for layer in watch.layers.values() if layer.shared), None)
    if first is not None:
        _prove_input(first)
    with _in_place_of_forward(watch.forwards()):
        for training in (False, True):
            probe.forward(model, inputs, training)
    watch.judge()
    proven: set[tuple[object, ...]] = set()
    for path, call in watch.calls.items():
        layer = watch.layers[path]
        kind = _kind(layer, call)
        if kind not in proven:
            _prove_shared(layer, call)
            proven.add(kind)
    return watch.calls


class _Watch:
    """Records the calls of adapted layers in a run."""

    def __init__(self, layers: Mapping[str, Adapted]) -> None:
        self.layers = layers
        self.called: set[str] = set()
        self.calls: dict[str, Call] = {}
        self.strays: dict[str, str] = {}
        self._given: dict[str, set[int]] = {}

    def forwards(self) -> dict[nn.Module, Callable[..., Any]]:
        found: dict[nn.Module, Callable[..., Any]] = {}
        for path, layer in self.layers.items():
            found[layer] = self._outer(path, layer.forward)
            if layer.shared:
                found[layer.base] = self._module(path, layer.base.forward)
                found |= {inner: self._inner(path, name, inner.forward) for name, inner in layer.layers().items()}
        return found

    def _outer(self, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **keywords: Any) -> Any:
            self.called.add(path)
            return forward(*arguments, **keywords)

        return run

    def _module(self, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The module's own forward, as the adapter calls it."""

        def run(*arguments: Any, **keywords: Any) -> Any:
            on_meta = pytree.tree_map(lambda value: value.to("meta") if isinstance(value, Tensor) else value, arguments)
            named = pytree.tree_map(lambda value: value.to("meta") if isinstance(value, Tensor) else value, keywords)
            self.calls[path] = Call(on_meta, named)
            self._given[path] = {_storage(v) for v in pytree.tree_leaves(arguments[:1]) if isinstance(v, Tensor)}
            try:
                return forward(*arguments, **keywords)
            finally:
                self._given[path] = set()

        return run

    def _inner(self, path: str, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        """One of the layers that share the adapter: it must read what the adapter gave, whole or a part of it."""

        def run(x: Tensor) -> Any:
            self.called.add(name)
            if _storage(x) not in self._given.get(path, set()):
                self.strays[name] = path
            return forward(x)

        return run

    def judge(self) -> None:
        """Raises for what the run showed.

        Raises:
            NotMergeable: A layer was not called, or does not read its module's input.
        """
        for path, layer in self.layers.items():
            for name in (path, *(layer.target.layers if layer.shared else ())):
                if name not in self.called:
                    reason = (
                        "the model's forward never calls it: it is unused, or its weight is read past the layer's call"
                    )
                    raise NotMergeable(reason, where=name, fix=_FIX)
        for name, path in self.strays.items():
            raise NotMergeable(f"it does not read the input of {path}, which its adapter changes", where=name, fix=_FIX)


def _storage(tensor: Tensor) -> int:
    """Identity of a tensor's memory, which its views share; it exists on the meta device too."""
    return int(tensor.untyped_storage()._cdata)


def _kind(layer: Adapted, call: Call) -> tuple[object, ...]:
    """What one proof holds for: the same code on tensors of the same shapes."""
    shapes = [
        tuple(v.shape) if isinstance(v, Tensor) else v for v in pytree.tree_leaves((call.arguments, call.keywords))
    ]
    weights = [(tuple(each.weight.shape), each.bias is None) for each in layer.layers().values()]
    return type(layer.base), str(weights), str(shapes)


def _prove_input(layer: Adapted) -> None:
    """An adapter that layers share must be a map of the input, then the layer: ``merged(b)`` is ``b`` after that map.

    Raises:
        PluginError: It is not.
    """
    adapter = copy.deepcopy(layer.adapter).to(torch.float64).eval()
    if any(tensor.is_meta for tensor in (*adapter.parameters(), *layer.base.parameters())):
        return
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter))
        like = layer.affine().weight.to(torch.float64)
        weight = torch.randn(16, layer.in_features, generator=generator, dtype=torch.float64).to(like)
        base = Affine(weight, weight[:, 0])
        try:
            found = adapter.merged(base).weight
            expected = base.after(adapter.merged(Affine.identity(layer.in_features, like))).weight
        except (RuntimeError, ValueError):  # it is tied to the shape of one layer
            found, expected = like.new_empty(0), like
    if found.shape != expected.shape or _difference(expected, found) > PROVEN:
        reason = f"{type(adapter).__name__} does not act on the input alone, so that layers cannot share it"
        raise PluginError(reason, where=layer.path, fix="its method must not declare separate = 'share'")


def _prove_shared(layer: Adapted, call: Call) -> None:
    """Folds a random affine map into the layers of a copy, and compares: if anything else reads the input, it shows.

    Raises:
        NotMergeable: The copies differ.
    """
    if next(iter(layer.layers().values())).weight.is_meta:
        return  # no values: parameters are only counted there
    module, layers = _float64_copy(layer)
    generator = torch.Generator().manual_seed(0)
    width = layer.in_features
    like = next(iter(layers.values())).weight
    noise = torch.randn(width + 1, width, generator=generator, dtype=torch.float64).to(like)
    first = Affine(torch.eye(width).to(like) + 0.1 * noise[:-1], noise[-1])
    arguments, keywords = call.example(like, generator)
    with torch.no_grad():
        expected = _first_tensor(module(first(arguments[0]), *arguments[1:], **keywords))
        for each in layers.values():
            write(each, read(each).after(first))
        found = _first_tensor(module(*arguments, **keywords))
    error = _difference(expected, found)
    if not error <= PROVEN:
        reason = (
            f"its input is not read by {', '.join(layer.target.layers)} alone, or their biases are read past their call"
        )
        raise NotMergeable(f"{reason} (folding differs by {error:.1e})", where=layer.path, fix=_FIX)


def cancelled_biases(layers: Mapping[str, Adapted], calls: Mapping[str, Call]) -> set[str]:
    """The layers without a bias that need none: the module around them is blind to it, as softmax is to a key's.

    Found by giving each a random bias, in float64, once for each kind of module.

    Args:
        layers: The adapted layers of a model.
        calls: The call of each that several layers share.
    """
    known: dict[tuple[object, ...], set[int]] = {}
    found = set()
    for path, call in calls.items():
        kind = _kind(layers[path], call)
        if kind not in known:
            known[kind] = _blind_to(layers[path], call)
        found |= {layers[path].target.layers[index] for index in known[kind]}
    return found


def _blind_to(layer: Adapted, call: Call) -> set[int]:
    """Which of the layers that share an adapter may go without a bias that they lack, by their place among them."""
    module, copies = _float64_copy(layer)
    generator = torch.Generator().manual_seed(0)
    like = next(iter(copies.values())).weight
    if like.is_meta or all(each.bias is not None for each in copies.values()):
        return set()
    arguments, keywords = call.example(like, generator)
    blind = set()
    with torch.no_grad():
        expected = _first_tensor(module(*arguments, **keywords))
        for index, each in enumerate(copies.values()):
            if each.bias is None:
                bias = torch.randn(each.weight.shape[0], generator=generator, dtype=torch.float64).to(like)
                each.bias = nn.Parameter(bias)
                if _difference(expected, _first_tensor(module(*arguments, **keywords))) <= PROVEN:
                    blind.add(index)
                each.bias = None
    return blind


def _float64_copy(layer: Adapted) -> tuple[nn.Module, dict[str, Any]]:
    """A copy of the module that holds the layers, in evaluation and float64, and its layers."""
    copied = copy.deepcopy(layer.base).to(torch.float64).eval()
    return copied, {path: copied.get_submodule(name) for path, name in layer.target.inside.items()}


def _difference(expected: Tensor | None, found: Tensor | None) -> float:
    return float("inf") if expected is None or found is None else relative_error(expected, found)
