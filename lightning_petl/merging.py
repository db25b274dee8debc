"""Folding adapters into their layers: all or none, in float64, with a certificate of what it cost in accuracy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_petl import probe
from lightning_petl.adapter import Adapter, Method
from lightning_petl.affine import Affine, relative_error
from lightning_petl.calls import cancelled_biases
from lightning_petl.errors import NotMergeable
from lightning_petl.injection import injection_of, leave, restore
from lightning_petl.layers import OutputLayer, read, write
from lightning_petl.wrappers import Adapted, adapted_layers

EXACT = 1e-9
"""Largest relative error, in float64, of a merge that counts as exact."""

LIMITS = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 2e-2}
"""Largest relative error of a whole model's outputs, by the dtype it is deployed in."""


@dataclass(frozen=True)
class LayerError:
    """What merging did to one layer, on random inputs, relative to the largest output.

    Attributes:
        float64: Difference between the layer with its adapter and the merged layer, both in float64.
        deployed: Difference between that and the merged layer in the dtype it is stored in.
    """

    float64: float
    deployed: float


@dataclass(frozen=True)
class ModelError:
    """What merging did to a whole model's outputs.

    Attributes:
        deployed: Largest difference of any output, relative to the largest, in the dtype the model is deployed in.
        top1_agreement: Share of inputs whose highest output is the same, or of pixels where outputs are scores of
            pixels, ``(inputs, classes, height, width)``; None where they are no scores.
        inputs: Number of inputs compared.
        source: Where the inputs came from, such as "validation".
        float64: The same difference with the whole model in float64; None where it was not measured.
    """

    deployed: float
    top1_agreement: float | None
    inputs: int
    source: str
    float64: float | None = None


@dataclass(frozen=True)
class Certificate:
    """What a merge is known to have done.

    Attributes:
        dtype: Dtype of the merged weights.
        layers: Error of each merged layer, by module path.
        created: Tensors that the plain backbone lacks: biases that merging had to create.
        model: Error of the whole model, where inputs were given.
        digests: sha256 of the base (``fingerprint``), the adapter file and the merged weights, where files exist.
    """

    dtype: str
    layers: dict[str, LayerError]
    created: tuple[str, ...] = ()
    model: ModelError | None = None
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def float64_error(self) -> float:
        """The largest float64 error of any layer; 0 where no layer was merged."""
        return max((layer.float64 for layer in self.layers.values()), default=0.0)

    @property
    def deployed_error(self) -> float:
        """The largest error of any layer in the dtype it is stored in."""
        return max((layer.deployed for layer in self.layers.values()), default=0.0)

    def to_dict(self) -> dict[str, object]:
        """The certificate as JSON values, with the largest errors spelled out."""
        return asdict(self) | {"float64_error": self.float64_error, "deployed_error": self.deployed_error}


def merge(model: nn.Module, inputs: Tensor | tuple[Tensor, ...] | None = None) -> Certificate:
    """Folds all adapters into their layers, in place; afterwards the model is the plain backbone, with other weights.

    All merged layers are computed and checked before the first is put in place, so a failure changes nothing.

    Args:
        model: A model with adapters.
        inputs: Inputs of the model; with them, its outputs before and after are compared too.

    Returns:
        The certificate of this merge.

    Raises:
        PETLError: The model has no adapters, or they are merged already.
        NotMergeable: An adapter's forward and its merged map disagree, or a merged weight does not fit its dtype.
    """
    refuse_unfoldable(injection_of(model).method)
    adapted = adapted_layers(model)
    blind = cancelled_biases(adapted, injection_of(model).calls)
    new = {path: merged for layer in adapted.values() for path, merged in _merged(layer, blind).items()}
    old = {path: layer for each in adapted.values() for path, layer in each.layers().items()}
    certificate = Certificate(
        dtype=str(next((layer.weight.dtype for layer in old.values()), _dtype(model))).removeprefix("torch."),
        layers={path: error for path, (_, error) in new.items()},
        created=tuple(
            f"{path}.bias" for path, (plain, _) in new.items() if plain.bias is not None and old[path].bias is None
        ),
    )
    before = None if inputs is None else outputs(model, inputs)
    restore(model, ((path, layer.base) for path, layer in adapted.items()))
    restore(model, ((path, plain) for path, (plain, _) in new.items()))
    if inputs is not None and before is not None:
        try:
            error = compare(before, outputs(model, inputs), "inputs", _dtype(model))
        except BaseException:
            restore(model, old.items())
            restore(model, adapted.items())
            raise
        certificate = replace(certificate, model=error)
    leave(model)
    return certificate


def refuse_unfoldable(method: Method) -> None:
    """Refuses a method that wraps modules.

    Raises:
        NotMergeable: It does, so there is nothing to fold.
    """
    if not method.folds:
        name = type(method).__name__
        raise NotMergeable(f"{name} does not fold", where="method", fix="test and serve its adapter file as it is")


def _dtype(model: nn.Module) -> torch.dtype:
    return next((parameter.dtype for parameter in model.parameters()), torch.get_default_dtype())


def _merged(layer: Adapted, blind: set[str]) -> dict[str, tuple[OutputLayer, LayerError]]:
    """Plain layers with the adapter folded in, and the error of that; the adapted layers are left as they are.

    Several layers that share an adapter are merged as one map that gives all their outputs.

    Args:
        layer: The adapted layer.
        blind: Layers that stay without a bias, since what they feed is blind to one.
    """
    adapter = copy.deepcopy(layer.adapter).to(torch.float64).eval()
    base = _in_float64(layer.affine())
    with torch.no_grad():
        exact = adapter.merged(_in_float64(layer.affine()))
        if exact.weight.shape != base.weight.shape:
            raise NotMergeable(
                f"merged weight is {tuple(exact.weight.shape)}, not {tuple(base.weight.shape)}", where=layer.path
            )
        start, merged = 0, {}
        for path, plain in layer.layers().items():
            stop = start + read(plain).out_features
            rows = exact.rows(start, stop)
            copied = _plain_copy(path, plain, rows.linear if path in blind else rows)
            error = _layer_error(base, adapter, exact, read(copied), slice(start, stop), path in blind)
            merged[path], start = (copied, error), stop
    for path, (_, error) in merged.items():
        if not error.float64 <= EXACT:
            raise NotMergeable(
                f"the adapter's forward and its merged map differ by {error.float64:.1e} (relative, float64)",
                where=path,
                fix="its method does not fold as it declares",
            )
    return merged


def _in_float64(base: Affine) -> Affine:
    """A copy of a map, even if it is float64 already: a method that writes to its base must not reach the layer."""
    bias = None if base.bias is None else base.bias.to(torch.float64, copy=True)
    return Affine(base.weight.to(torch.float64, copy=True), bias)


def _plain_copy(path: str, layer: OutputLayer, new: Affine) -> OutputLayer:
    """A layer of the same kind and settings with other weights; the weights of the old one are not copied."""
    plain = copy.copy(layer)
    plain._parameters = dict(layer._parameters)
    write(plain, new)
    if not all(torch.isfinite(parameter).all() for parameter in plain.parameters()):
        raise NotMergeable(f"merged weights are not finite as {plain.weight.dtype}", where=path)
    return plain


def _layer_error(
    base: Affine, adapter: Adapter, exact: Affine, stored: Affine, rows: slice, without_bias: bool
) -> LayerError:
    """Compares the outputs ``rows`` on fixed random inputs, ``(8, in)``."""
    generator = torch.Generator().manual_seed(20230216)
    x = torch.randn(8, base.in_features, generator=generator, dtype=torch.float64).to(base.weight.device)
    with_adapter, merged = adapter(x, base)[:, rows], exact(x)[:, rows]
    deployed = stored(x.to(stored.weight.dtype)).to(torch.float64)
    if without_bias and exact.bias is not None:
        deployed = deployed + exact.bias[rows]  # left out of the file on purpose
    return LayerError(relative_error(with_adapter, merged), relative_error(with_adapter, deployed))


def outputs(
    model: nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    run: Callable[..., Any] = lambda model, *inputs: model(*inputs),
) -> Tensor:
    """A model's output in evaluation mode, in float64; of several outputs, the first tensor.

    Args:
        model: The model.
        inputs: What it takes.
        run: Runs the model; its own forward where nothing is given.
    """
    with probe.evaluation(model):
        found = run(model, *inputs) if isinstance(inputs, tuple) else run(model, inputs)
    while not isinstance(found, Tensor):
        found = next(iter(found.values())) if isinstance(found, dict) else found[0]
    return found.to(torch.float64)


def compare(expected: Tensor, found: Tensor, source: str, dtype: torch.dtype) -> ModelError:
    """The error of a whole model's outputs, ``(inputs, ...)`` in float64.

    Raises:
        NotMergeable: It is above the limit of the dtype.
    """
    error = relative_error(expected, found)
    if not error <= LIMITS.get(dtype, EXACT):
        raise NotMergeable(f"the merged model's outputs differ by {error:.1e} (relative, {dtype})", where=source)
    scores = expected.dim() in (2, 4) and expected.shape[1] > 1
    agreement = float((expected.argmax(1) == found.argmax(1)).double().mean()) if scores else None
    return ModelError(error, agreement, expected.shape[0], source)
