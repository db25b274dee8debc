"""The comparisons that the contract suite is made of; each raises AssertionError with what a plugin's author must know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import Tensor, nn

from lightning_petl import tensorfile
from lightning_petl.adapter import Adapter
from lightning_petl.affine import Affine
from lightning_petl.errors import NotMergeable
from lightning_petl.injection import SHARED, Adapted, adapted_layers, trainable
from lightning_petl.layers import read
from lightning_petl.testing.backbones import Backbone, add_noise, normal


@contextmanager
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def fail(message: str) -> NoReturn:
    raise AssertionError(message)


def require(condition: bool, message: str) -> None:
    """Not an assert statement, which ``python -O`` would take out of a shipped suite."""
    if not condition:
        fail(message)


def added(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of adapters and shared modules."""
    prefixes = (*(f"{path}.adapter." for path in adapted_layers(model)), f"{SHARED}.")
    return {name: parameter for name, parameter in model.named_parameters() if name.startswith(prefixes)}


def perturb(model: nn.Module) -> None:
    """Moves all that trains, and the adapters' own statistics, away from where they were initialised."""
    add_noise(trainable(model).values(), seed=5)
    for layer in adapted_layers(model).values():
        add_noise(layer.adapter.buffers(), seed=6, positive=True)


def outputs(model: nn.Module, backbone: Backbone, dtype: torch.dtype | None = None) -> Tensor:
    dtype = dtype or next(model.parameters()).dtype
    with torch.no_grad():
        found: Tensor = model.eval()(backbone.inputs(dtype))
    return found


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value; infinite where one is not finite."""
    if found.shape != expected.shape:
        fail(f"shape {tuple(found.shape)} instead of {tuple(expected.shape)}")
    difference = (found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-3)
    return float(difference.nan_to_num(nan=torch.inf))


def compare_paths(path: str, model: nn.Module, layer: Adapted, x: Tensor, tolerance: float) -> None:
    base, wanted = read(layer.base), trainable(model)
    fast, slow = layer.adapter(x, base), layer.adapter.merged(base)(x)
    error = difference(fast, slow)
    mode = "training" if layer.training else "evaluation"
    require(error <= tolerance, f"{path}: forward and merged differ by {error:.1e} in {mode} ({x.dtype})")
    direction = normal(tuple(slow.shape), seed=7).to(slow)
    gradients = []
    for out in (fast, slow):
        found = torch.autograd.grad(out, [x, *wanted.values()], direction, allow_unused=True)
        gradients.append([torch.zeros(()) if gradient is None else gradient for gradient in found])
    for name, first, second in zip(["x", *wanted], *gradients, strict=True):
        error = difference(*torch.broadcast_tensors(first, second))
        require(error <= tolerance, f"{path}: gradients of {name} differ by {error:.1e} between forward and merged")


def check_pure(path: str, adapter: Adapter, base: Affine) -> None:
    operands = {"weight": base.weight.clone()} | ({} if base.bias is None else {"bias": base.bias.clone()})
    state, modes, random = snapshot(adapter), [m.training for m in adapter.modules()], torch.get_rng_state()
    first, second = adapter.merged(base), adapter.merged(base)
    require(first.weight.shape == base.weight.shape, f"{path}: merged gives a map of {tuple(first.weight.shape)}")
    wanted = torch.promote_types(base.weight.dtype, torch.float32)
    require(first.weight.dtype == wanted, f"{path}: merged gives {first.weight.dtype}, not the wider {wanted}")
    require(torch.equal(first.weight, second.weight), f"{path}: merged gives another map the second time")
    after = {"weight": base.weight} | ({} if base.bias is None else {"bias": base.bias})
    equal_tensors(operands, after, f"{path}: merged changes its base")
    equal_tensors(state, adapter.state_dict(), f"{path}: merged changes the adapter")
    require(modes == [m.training for m in adapter.modules()], f"{path}: merged changes the adapter's mode")
    require(torch.equal(random, torch.get_rng_state()), f"{path}: merged draws random numbers")


def check_plain(model: nn.Module, plain: nn.Module, created: tuple[str, ...]) -> None:
    require(types(model) == types(plain), "after merging, module types are not the plain backbone's")
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items() if name not in created}
    expected = {name: (tensor.shape, tensor.dtype) for name, tensor in plain.state_dict().items()}
    require(found == expected, "after merging, names, shapes or dtypes are not the plain backbone's")


def cannot_merge(base: Affine) -> Affine:
    raise NotMergeable("made to fail by the contract suite")


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def types(model: nn.Module) -> dict[str, type]:
    return {path: type(module) for path, module in model.named_modules()}


def size(adapter: Adapter) -> int:
    return sum(tensor.numel() for tensor in adapter.state_dict().values())


def equal_tensors(before: Mapping[str, Tensor], after: Mapping[str, Tensor], message: str) -> None:
    """Bit for bit, so that NaN equals itself and -0.0 is not 0.0."""
    require(before.keys() == after.keys(), f"{message}: {sorted(before.keys() ^ after.keys())[:3]}")
    for name, tensor in before.items():
        require(tensorfile.tensor_digest(tensor) == tensorfile.tensor_digest(after[name]), f"{message}: {name}")
