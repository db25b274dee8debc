"""The comparisons of the contract suite. Each raises AssertionError, in words that a plugin's author can act on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from lightning_petl.adapter import Adapter, LowRank, Method
from lightning_petl.affine import Affine
from lightning_petl.errors import NotMergeable
from lightning_petl.injection import SHARED, trainable
from lightning_petl.tensorfile import tensor_digest
from lightning_petl.testing.backbones import Backbone, add_noise, normal
from lightning_petl.wrappers import Adapted, adapted_layers


def require(condition: bool, message: str) -> None:
    """Raises AssertionError; an assert statement in a shipped suite would be lost under ``python -O``."""
    if not condition:
        raise AssertionError(message)


def require_equal(before: Mapping[str, Tensor], after: Mapping[str, Tensor], message: str) -> None:
    """Requires tensors to be equal bit for bit, under the same names."""
    require(before.keys() == after.keys(), f"{message}: {sorted(before.keys() ^ after.keys())[:3]}")
    for name, tensor in before.items():
        require(tensor_digest(tensor) == tensor_digest(after[name]), f"{message}: {name}")


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value; infinite where one is not finite."""
    require(found.shape == expected.shape, f"shape {tuple(found.shape)} instead of {tuple(expected.shape)}")
    found, expected = found.detach().double(), expected.detach().double()
    error = (found - expected).abs().max() / expected.abs().max().clamp_min(1e-3)
    return float(error.nan_to_num(nan=torch.inf))


def outputs(model: nn.Module, backbone: Backbone) -> Tensor:
    """What a model computes in evaluation mode for its backbone's inputs."""
    with torch.no_grad():
        found: Tensor = model.eval()(backbone.inputs(next(model.parameters()).dtype))
    return found


@contextmanager
def seeded() -> Iterator[None]:
    """The same random numbers every time, without a trace outside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def train(model: nn.Module) -> None:
    """Stands in for training: moves all that trains, and the adapters' own statistics, from where they started."""
    add_noise(trainable(model).values(), seed=5)
    for layer in adapted_layers(model).values():
        add_noise(layer.adapter.buffers(), seed=6, positive=True)


def added(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of adapters and shared modules, by name."""
    prefixes = (*(f"{path}.adapter." for path in adapted_layers(model)), f"{SHARED}.")
    return {name: parameter for name, parameter in model.named_parameters() if name.startswith(prefixes)}


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all tensors of a module."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def module_types(model: nn.Module) -> dict[str, type]:
    """The type of each module, by path."""
    return {path: type(module) for path, module in model.named_modules()}


def size(adapter: Adapter) -> int:
    """How many numbers an adapter takes in a file."""
    return sum(tensor.numel() for tensor in adapter.state_dict().values())


def cannot_merge(base: Affine) -> Affine:
    """Stands in for the `merged` of a layer that cannot be merged.

    Raises:
        NotMergeable: Always.
    """
    raise NotMergeable("made to fail by the contract suite")


def paths_agree(path: str, model: nn.Module, layer: Adapted, x: Tensor, tolerance: float) -> None:
    """Compares an adapter's forward with its merged map: values, and gradients of x and of all that trains."""
    base, x = layer.affine(), x.requires_grad_()
    fast, slow = layer.adapter(x, base), layer.adapter.merged(base)(x)
    where = f"in {'training' if layer.training else 'evaluation'} ({x.dtype})"
    error = difference(fast, slow)
    require(error <= tolerance, f"{path}: forward and merged differ by {error:.1e} {where}")
    names, first, second = ["x", *trainable(model)], _gradients(fast, x, model), _gradients(slow, x, model)
    for name, of_fast, of_slow in zip(names, first, second, strict=True):
        error = difference(of_fast, of_slow)
        require(error <= tolerance, f"{path}: gradients of {name} in forward and merged differ by {error:.1e} {where}")


def consolidated_models_agree(model: nn.Module, backbone: Backbone) -> None:
    """Compares a model with the same one whose adapters have their form for storage."""
    expected = outputs(model, backbone)
    for layer in adapted_layers(model).values():
        layer.adapter = layer.adapter.consolidated().eval()
    error = difference(outputs(model, backbone), expected)
    require(error <= 1e-12, f"with consolidated adapters, the model differs by {error:.1e}")


def is_random_in_training(model: nn.Module, backbone: Backbone) -> bool:
    """Whether two runs in training mode differ."""
    x = backbone.inputs(next(model.parameters()).dtype)
    with torch.no_grad(), seeded():
        first, second = (model.train()(x) for _ in range(2))
    model.eval()
    return not torch.equal(first, second)


def parsed_again(method: Method) -> Method:
    """A method after the way of a configuration: parsed, written as YAML, parsed again, built."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Method, "method")
    path = f"{type(method).__module__}.{type(method).__qualname__}"
    parsed = parser.parse_object({"method": {"class_path": path, "init_args": dict(method.arguments)}})
    again = parser.instantiate_classes(parser.parse_string(parser.dump(parsed))).method
    require(isinstance(again, Method), f"YAML gives {again!r}")
    return cast(Method, again)


def compiles_and_exports(model: nn.Module, backbone: Backbone) -> None:
    """Requires the graph of a merged model in one piece, from torch.compile and from torch.export."""
    x, expected = backbone.inputs(next(model.parameters()).dtype), outputs(model, backbone)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)(x)
        exported = torch.export.export(model, (x,)).module()(x)
    for name, found in (("compile", compiled), ("export", exported)):
        error = difference(found, expected)
        require(error <= 1e-9, f"torch.{name} of the merged model differs by {error:.1e}")


def _gradients(out: Tensor, x: Tensor, model: nn.Module) -> tuple[Tensor, ...]:
    """Gradients along a fixed random direction; zeros for what has no part in the output."""
    direction = normal(tuple(out.shape), seed=7).to(out)
    inputs = [x, *trainable(model).values()]
    return torch.autograd.grad(out, inputs, direction, allow_unused=True, materialize_grads=True)


def merged_is_pure(path: str, adapter: Adapter, base: Affine) -> None:
    """Requires that `merged` computes in the wider dtype, the same each time, and leaves everything as it was."""
    before, state = _tensors(base), snapshot(adapter)
    modes, random = [module.training for module in adapter.modules()], torch.get_rng_state()
    first, second = adapter.merged(base), adapter.merged(base)
    require_equal(before, _tensors(base), f"{path}: merged changes its base")
    require_equal(state, adapter.state_dict(), f"{path}: merged changes the adapter")
    require(modes == [module.training for module in adapter.modules()], f"{path}: merged changes the adapter's mode")
    require(torch.equal(random, torch.get_rng_state()), f"{path}: merged draws random numbers")
    require_equal(_tensors(first), _tensors(second), f"{path}: merged gives another map the second time")
    found = first.weight.shape
    require(found == base.weight.shape, f"{path}: merged gives weight {tuple(found)}, not {tuple(base.weight.shape)}")
    dtype = first.weight.dtype
    require(dtype == base.weight.dtype, f"{path}: for a base in {base.weight.dtype}, merged computes in {dtype}")


def _tensors(affine: Affine) -> dict[str, Tensor]:
    tensors = {"weight": affine.weight} if affine.bias is None else {"weight": affine.weight, "bias": affine.bias}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def consolidated_is_exact(path: str, layer: Adapted, small: Adapter) -> None:
    """Compares both paths of a consolidated adapter with the definition, in float64."""
    base = layer.affine()
    x = normal((3, base.in_features), seed=3)
    expected = layer.adapter.merged(base)(x)
    for name, found in (("merged map", small.merged(base)(x)), ("forward", small(x, base))):
        error = difference(found, expected)
        require(error <= 1e-12, f"{path}: the {name} of the consolidated form differs by {error:.1e}")


def low_rank_is_exact(path: str, adapter: Adapter, base: Affine) -> bool:
    """Compares what an adapter's low-rank form adds to a layer with its merged map; says whether it has that form."""
    before, state = _tensors(base), snapshot(adapter)
    with torch.no_grad():
        change, merged = adapter.low_rank(base), adapter.merged(base)
    require_equal(before, _tensors(base), f"{path}: low_rank changes its base")
    require_equal(state, adapter.state_dict(), f"{path}: low_rank changes the adapter")
    if change is None:
        return False
    require(isinstance(change, LowRank), f"{path}: low_rank returns {type(change).__name__}, no LowRank")
    rank = change.down.shape[0]
    found, expected = (change.down.shape, change.up.shape), ((rank, base.in_features), (base.out_features, rank))
    require(found == expected, f"{path}: low_rank's down and up are {found}, not {expected}")
    weight = base.weight + change.scale * (change.up @ change.down)
    biases = [
        bias for bias in (base.bias, None if change.bias is None else change.scale * change.bias) if bias is not None
    ]
    error = difference(weight, merged.weight)
    require(error <= 1e-12, f"{path}: low_rank and merged differ by {error:.1e} in the weight")
    require(bool(biases) == (merged.bias is not None), f"{path}: only one of low_rank and merged has a bias")
    if merged.bias is not None:
        error = difference(torch.stack(biases).sum(0), merged.bias)
        require(error <= 1e-12, f"{path}: low_rank and merged differ by {error:.1e} in the bias")
    return True


def is_plain(model: nn.Module, plain: nn.Module, created: tuple[str, ...]) -> None:
    """Requires the modules and tensors of a plain backbone, with nothing added but the created biases."""
    require(module_types(model) == module_types(plain), "after merging, module types are not the plain backbone's")
    found, expected = (
        {name: (tensor.shape, tensor.dtype) for name, tensor in each.state_dict().items() if name not in created}
        for each in (model, plain)
    )
    require(found == expected, "after merging, names, shapes or dtypes are not the plain backbone's")
