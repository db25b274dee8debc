"""Adapters as PEFT's LoRA and back: any method with a low-rank form leaves, and a LoRA comes in.

An exported folder is a standard LoRA adapter, which stock PEFT loads onto the plain backbone. PEFT is not needed here.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_petl import peft_format, tensorfile
from lightning_petl.adapter import LowRank, Method
from lightning_petl.affine import Affine, relative_error
from lightning_petl.errors import AdapterFileError, NotMergeable, PluginError, TargetNotFound
from lightning_petl.injection import eject, inject, injection_of
from lightning_petl.merging import EXACT
from lightning_petl.methods.lora import LoRA, LoRALayer
from lightning_petl.peft_format import CONFIG, PREFIX, WEIGHTS, PEFTConfig
from lightning_petl.store import load_adapter, plain_state
from lightning_petl.wrappers import Adapted, adapted_layers

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_KINDS = ("lora_A.weight", "lora_B.weight", "lora_B.bias")


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        layers: Paths of the adapted layers.
        rank: Rank of every pair.
        saved: Modules that are stored whole, such as the head.
        without_bias: Layers that have no bias of their own and get one; PEFT runs these but cannot merge them.
        error: Largest difference between a layer's map as written and as it is, in float64, relative to its weights.
    """

    layers: tuple[str, ...]
    rank: int
    saved: tuple[str, ...]
    without_bias: tuple[str, ...]
    error: float


@dataclass(frozen=True)
class _Pair:
    """What is added to one layer, in float64, and how it is to be written."""

    change: LowRank
    base: Affine
    kernel: torch.Size
    dtype: torch.dtype
    has_bias: bool


def export_peft(model: nn.Module, path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Exported:
    """Writes an adapter file as a LoRA adapter of PEFT, for the plain backbone that the file belongs to.

    ``lora_A`` and ``lora_B`` are computed in float64 and written in the adapter's own dtype. What the file stores
    besides adapters, such as a head, becomes ``modules_to_save``. The folder's README says how to load it.

    Args:
        model: The plain backbone; afterwards it has the adapters, as `lightning_petl.load_adapter` leaves it.
        path: A file that `lightning_petl.save_adapter` wrote.
        folder: Where ``adapter_config.json`` and ``adapter_model.safetensors`` go.

    Raises:
        NotMergeable: The method has no low-rank form, or PEFT cannot hold something that the file stores.
        AdapterFileError: The file is refused, or the folder cannot be written.
        BackboneMismatch: The file belongs to another backbone.
    """
    modules = {where: module for where, module in model.named_modules() if where}
    load_adapter(model, path)
    record = injection_of(model)
    pairs = {where: pair for layer in adapted_layers(model).values() for where, pair in _pairs(layer, record.method)}
    if not pairs:
        raise _cannot_hold(record.method, "it adapts no layer")
    names, saved = _saved(modules, record.extra, pairs)
    tensors, rank, scale, error = _written(pairs)
    tensors |= (stored := _inside(saved, plain_state(model)))
    biases = any(pair.change.bias is not None for pair in pairs.values())
    config = peft_format.config_of(rank, scale * rank, biases, list(pairs), names, modules)
    _check_meaning(peft_format.parse(config, CONFIG), modules, pairs, saved)
    without_bias = tuple(where for where, pair in pairs.items() if biases and not pair.has_bias)
    whole = tuple(where for where in saved if _inside([where], stored))
    exported = Exported(tuple(pairs), rank, whole, without_bias, error)
    peft_format.write(Path(folder), config, tensors, _readme(tensorfile.read_header(path), exported))
    return exported


def _cannot_hold(method: Method, reason: str, where: str = "method") -> NotMergeable:
    fix = "share the merged weights instead" if method.folds else "share the adapter file instead"
    return NotMergeable(f"PEFT's LoRA cannot hold {type(method).__name__}: {reason}", where=where, fix=fix)


def _pairs(layer: Adapted, method: Method) -> Iterator[tuple[str, _Pair]]:
    """The pair of each layer that an adapter folds into; of layers that share one, each has its rows of the change."""
    if method.wraps != "layer":
        raise _cannot_hold(method, f"it wraps {method.wraps}, and adds no product of two matrices", layer.path)
    adapter = copy.deepcopy(layer.adapter).to(torch.float64).eval()
    base = layer.affine().to(torch.float64)
    with torch.no_grad():
        change, merged = adapter.low_rank(base), adapter.merged(base)
        if change is None:
            raise _cannot_hold(method, "it has no low-rank form", layer.path)
        if not _error(_with(base, change), merged) <= EXACT:
            raise PluginError(f"low_rank of {type(adapter).__name__} is not what its merged map adds", where=layer.path)
    start = 0
    for path, plain in layer.layers().items():
        stop = start + len(plain.weight)
        bias = None if change.bias is None else change.bias[start:stop].detach()
        own = replace(change, down=change.down.detach(), up=change.up[start:stop].detach(), bias=bias)
        if len(own.down):  # rank 0 adds nothing
            kernel, has_bias = plain.weight.shape[2:], plain.bias is not None
            yield path, _Pair(own, base.rows(start, stop), kernel, layer.target.dtype, has_bias)
        start = stop


def _with(base: Affine, change: LowRank) -> Affine:
    """A layer's map with what is added to it."""
    bias = None if change.bias is None else change.scale * change.bias
    return base + Affine(change.scale * (change.up @ change.down), bias)


def _error(found: Affine, expected: Affine) -> float:
    """Largest difference of two maps' weights and of their biases, each relative to the expected ones."""
    worst = 0.0
    for mine, other in ((found.weight, expected.weight), (found.bias, expected.bias)):
        if mine is None and other is None:
            continue
        first, second = (torch.zeros_like(expected.weight[:, 0]) if t is None else t for t in (mine, other))
        error = relative_error(second, first)
        worst = max(worst, math.inf if math.isnan(error) else error)  # max() would pass over a NaN
    return worst


def _written(pairs: Mapping[str, _Pair]) -> tuple[dict[str, Tensor], int, float, float]:
    """Tensors by their names in the plain model, the rank and scale of all pairs, and the largest error of writing."""
    scales = {pair.change.scale for pair in pairs.values()}
    scale = scales.pop() if len(scales) == 1 else 1.0
    rank = max(len(pair.change.down) for pair in pairs.values())
    biases = any(pair.change.bias is not None for pair in pairs.values())
    tensors, worst = {}, 0.0
    for path, pair in pairs.items():
        written = _cast(_alike(pair.change, rank, scale, biases), pair.dtype)
        error = _error(_with(pair.base, _cast(written, torch.float64)), _with(pair.base, pair.change))
        worst = max(worst, error)
        tensors[f"{path}.{_KINDS[0]}"] = written.down.reshape(*written.down.shape, *pair.kernel)
        tensors[f"{path}.{_KINDS[1]}"] = written.up.reshape(*written.up.shape, *pair.kernel)
        if written.bias is not None:
            tensors[f"{path}.{_KINDS[2]}"] = written.bias
    return tensors, rank, scale, worst


def _alike(change: LowRank, rank: int, scale: float, with_bias: bool) -> LowRank:
    """The same change with units of zeros up to a rank, with a given factor, and with a bias if others have one."""
    inner = _ratio(change.scale, scale)
    more = rank - len(change.down)
    down, up = F.pad(change.down, (0, 0, 0, more)), F.pad(change.up, (0, more)) * inner
    bias = change.bias * inner if change.bias is not None else up.new_zeros(len(up)) if with_bias else None
    return LowRank(down, up, bias, scale)


def _ratio(scale: float, common: float) -> float:
    return 1.0 if scale == common else scale / common  # a common scale may be 0


def _cast(change: LowRank, dtype: torch.dtype) -> LowRank:
    bias = None if change.bias is None else change.bias.to(dtype)
    return replace(change, down=change.down.to(dtype), up=change.up.to(dtype), bias=bias)


def _saved(
    modules: Mapping[str, nn.Module], extra: Sequence[str], adapted: Collection[str]
) -> tuple[list[str], list[str]]:
    """Names for ``modules_to_save``, and the paths of all modules that PEFT takes them for.

    Raises:
        NotMergeable: PEFT could not store the module of a tensor.
    """
    owners = {name.rpartition(".")[0]: name for name in extra}
    if "" in owners:
        raise _cannot_store(f"{owners['']} belongs to the model itself", f"extra.{owners['']}")
    names = [owner for owner in owners if not any(owner.startswith(f"{other}.") for other in owners)]
    paths = [path for path in modules if any(path.endswith(name) for name in names)]
    for path in paths:
        inside = [other for other in (*adapted, *paths) if other.startswith(f"{path}.")]
        if path in adapted or inside:
            raise _cannot_store(f"{min(inside, default=path)} is wrapped already", path)
        if isinstance(modules[path], _CONTAINERS):
            raise _cannot_store(f"it is a {type(modules[path]).__name__}", path)
    return names, paths


def _cannot_store(reason: str, where: str) -> NotMergeable:
    what = f"PEFT stores modules whole and by the ends of their names, and cannot store this: {reason}"
    return NotMergeable(what, where=where, fix="share the merged weights instead")


def _inside(modules: Sequence[str], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of some modules."""
    prefixes = tuple(f"{module}." for module in modules)
    return {name: tensor for name, tensor in state.items() if name.startswith(prefixes)}


def _check_meaning(
    config: PEFTConfig, modules: Collection[str], layers: Collection[str], saved: Collection[str]
) -> None:
    """Reads a configuration as PEFT would: it must mean these layers, and these modules to save."""
    adapts, saves = ({path for path in modules if means(path)} for means in (config.adapts, config.saves))
    wrong = (adapts ^ set(layers)) | (saves ^ set(saved))
    if wrong:
        reason = "PEFT tells modules by the ends of their names, and would take this one for another"
        raise NotMergeable(reason, where=min(wrong), fix="share the merged weights instead")


def _readme(header: Mapping[str, Any], exported: Exported) -> str:
    """What whoever loads the folder must know to get the same outputs."""
    backbone, method, bare = header["backbone"], header["method"], exported.without_bias
    merging = (
        f"\n- PEFT runs these layers but cannot merge them, as they have no bias: {', '.join(bare)}." if bare else ""
    )
    arguments = backbone.get("arguments")
    built = "as the adapter's author built it" if arguments is None else f"built with `{json.dumps(arguments)}`"
    return f"""# LoRA adapter for PEFT

Exported by lightning-petl from a {method["name"]} adapter, digest `{header["digest"]}`.

- Backbone: `{backbone["name"]}`, {built}.
- Its weights are those of fingerprint `{backbone["fingerprint"]}`. PEFT does not check them.
- Stored whole, in the place of the backbone's own: {", ".join(exported.saved) or "nothing"}.{merging}
- Task: `{json.dumps(header.get("task") or {})}`.

```python
from peft import PeftModel

model = PeftModel.from_pretrained(backbone.eval(), "this/folder", autocast_adapter_dtype=False)
```
"""


def import_peft(model: nn.Module, folder: str | os.PathLike[str]) -> nn.Module:
    """Puts a LoRA adapter of PEFT onto a plain backbone, in place, as this package's `LoRA`.

    Layers of different ranks all get the largest: their pairs are filled up with zeros, which changes no output. Where
    scales differ, each is multiplied into its layer's ``up``. Modules that PEFT stored whole, such as the head, replace
    the backbone's own, and `lightning_petl.save_adapter` stores them with the adapter.

    Args:
        model: The plain backbone that the adapter was trained on, with the weights that it had then: PEFT keeps nothing
            to tell them by.
        folder: A folder that PEFT's ``save_pretrained`` wrote.

    Returns:
        The model itself.

    Raises:
        AdapterFileError: The configuration holds what is not handled, or tensors are missing, unknown, misshapen or not
            finite. Any refusal leaves the model as it was.
        TargetNotFound: The configuration means no module of this model.
        NotMergeable: An adapted layer is no Linear or 1x1 convolution.
    """
    folder = Path(folder)
    config, tensors = peft_format.read(folder)
    paths = [path for path, _ in model.named_modules() if path]
    layers = [path for path in paths if config.adapts(path)]
    if not layers:
        raise TargetNotFound("the adapter's target_modules match no module of this model", where=str(folder / CONFIG))
    saved = _inside([path for path in paths if config.saves(path)], plain_state(model))
    _check_names(config, layers, saved, tensors, folder / WEIGHTS)
    file = folder / WEIGHTS
    kept = {name: _fitted(name, tensors[name], tuple(own.shape), own.dtype, file) for name, own in saved.items()}
    rank, scales = max(map(config.rank_of, layers)), {config.scale_of(path) for path in layers}
    scale = scales.pop() if len(scales) == 1 else 1.0
    inject(model, LoRA(rank, scale * rank, config.dropout, targets=[*map(re.escape, layers)], bias=config.bias))
    try:
        for path, layer in adapted_layers(model).items():
            _fill(layer, config, {kind: tensors[f"{path}.{kind}"] for kind in _kinds(config)}, scale, file)
    except BaseException:
        eject(model)
        raise
    with torch.no_grad():
        for name, tensor in kept.items():
            saved[name].copy_(tensor)
    injection_of(model).extra = tuple(kept)
    return model


def _kinds(config: PEFTConfig) -> tuple[str, ...]:
    return _KINDS if config.bias else _KINDS[:2]


def _check_names(
    config: PEFTConfig, layers: Sequence[str], saved: Collection[str], tensors: Collection[str], path: Path
) -> None:
    expected = {f"{layer}.{kind}" for layer in layers for kind in _kinds(config)} | set(saved)
    for what, names in (("lacks", expected - set(tensors)), ("holds unknown", set(tensors) - expected)):
        if names:
            first = f"{PREFIX}{min(names)}"
            raise AdapterFileError(f"the file {what} {len(names)} tensors, {first} first", where=f"{path}: {first}")


def _fill(layer: Adapted, config: PEFTConfig, tensors: Mapping[str, Tensor], scale: float, file: Path) -> None:
    """Copies one pair, which PEFT keeps in the shapes of two layers of the frozen one's kind."""
    path, adapter, rank = layer.path, layer.adapter, config.rank_of(layer.path)
    assert isinstance(adapter, LoRALayer)
    out, width, *kernel = layer.layers()[path].weight.shape
    shapes = dict(zip(_KINDS, ((rank, width, *kernel), (out, rank, *kernel), (out,)), strict=True))
    dtype = adapter.down.weight.dtype
    found = {kind: _fitted(f"{path}.{kind}", t, shapes[kind], dtype, file) for kind, t in tensors.items()}
    inner = _ratio(config.scale_of(path), scale)
    with torch.no_grad():
        adapter.down.weight.zero_()
        adapter.down.weight[:rank] = found["lora_A.weight"].flatten(1)
        adapter.up.weight[:, :rank] = _scaled(found["lora_B.weight"].flatten(1), inner)
        if adapter.up.bias is not None:
            adapter.up.bias.copy_(_scaled(found["lora_B.bias"], inner))


def _scaled(tensor: Tensor, factor: float) -> Tensor:
    return (tensor.to(torch.float64) * factor).to(tensor.dtype)


def _fitted(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, path: Path) -> Tensor:
    """A tensor in the shape and dtype that the model has for it, once that is known to lose nothing."""
    where = f"{path}: {PREFIX}{name}"
    if tensor.shape != shape:
        raise AdapterFileError(f"its shape is {tuple(tensor.shape)}, this model needs {shape}", where=where)
    found = tensor.to(dtype)
    if not torch.equal(found.to(tensor.dtype), tensor):
        raise AdapterFileError(
            f"its values do not fit {dtype}", where=where, fix=f"import onto a backbone in {tensor.dtype}"
        )
    return found
