"""What a task leaves behind: an adapter file, and a merged file that the plain backbone loads by itself.

Both are safetensors with a header and a digest. Loading is strict both ways, and a refused load changes nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_petl import tensorfile
from lightning_petl.adapter import JSON, Adapter, Method
from lightning_petl.errors import AdapterFileError, BackboneMismatch, ConfigError, PETLError
from lightning_petl.injection import SHARED, eject, inject, injection_of, refuse_adapted, trainable
from lightning_petl.layers import OutputLayer
from lightning_petl.plugins import method_named, name_of
from lightning_petl.structure import structure, unlike
from lightning_petl.tensorfile import Header, tensor_digest
from lightning_petl.wrappers import adapted_layers

FORMAT = "lightning-petl/1"
MERGED_FORMAT = "lightning-petl-merged/1"


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The persistent tensors of the plain backbone, under the names that they have without adapters."""
    adapted = adapted_layers(model)
    named = {plain_name(name, adapted): tensor for name, tensor in model.state_dict().items()}
    return {name: tensor for name, tensor in named.items() if name is not None and isinstance(tensor, Tensor)}


def plain_name(name: str, adapted: Container[str]) -> str | None:
    """The name that a tensor of a model with adapters has in the plain backbone; None for what a method added.

    Args:
        name: Its name in the model.
        adapted: Module paths of the model's adapted layers.
    """
    parts = name.split(".")
    if parts[0] == SHARED:
        return None
    for end in range(1, len(parts)):
        path = ".".join(parts[:end])
        if path in adapted:
            return ".".join([path, *parts[end + 1 :]]) if parts[end] == "base" else None
    return name


def plain_structure(model: nn.Module) -> dict[str, JSON]:
    """The `structure` of the plain backbone, without what a method added."""
    adapted = adapted_layers(model)
    named = model.named_modules()
    return structure(module for path, module in named if plain_name(f"{path}.", adapted) is not None)


def tensor_digests(model: nn.Module, leave_out: Iterable[str] = ()) -> dict[str, str]:
    """sha256 of shape, dtype and bytes of each tensor of the plain backbone, by name."""
    outside = set(leave_out)
    return {name: tensor_digest(tensor) for name, tensor in sorted(plain_state(model).items()) if name not in outside}


def fingerprint(digests: Mapping[str, str]) -> str:
    """sha256 over the names and digests of a backbone's tensors, in order of name."""
    return hashlib.sha256(tensorfile.canonical(sorted(digests.items())).encode()).hexdigest()


def save_adapter(
    model: nn.Module,
    path: str | os.PathLike[str],
    extra: Sequence[str] = (),
    task: Mapping[str, JSON] | None = None,
    backbone: Mapping[str, JSON] | None = None,
) -> str:
    """Writes the adapters of a model, in their consolidated form, with what else its task needs.

    Args:
        model: A model with adapters.
        path: The file; one that is there is replaced, whole.
        extra: Modules or tensors of the backbone to store as they are, such as ``("head",)``. What the method trains in
            place, and buffers that changed since injection, are stored without being named.
        task: What a consumer needs to predict: class names, normalisation, image size.
        backbone: How to build the backbone: ``name`` and ``arguments`` for timm, ``num_classes`` among these. Where it
            is left out the file has the name that the model gives itself, and offline merging cannot build it.

    Returns:
        The file's digest.

    Raises:
        PETLError: The model has no adapters, or something trains that would not be saved.
        AdapterFileError: A tensor is not finite, or the file cannot be written.
    """
    record = injection_of(model)
    extras = _extra_tensors(model, (*extra, *record.extra))
    _refuse_unsaved(model, extras)
    left = tensor_digests(model, leave_out=extras)
    header: Header = {
        "format": FORMAT,
        "method": _method_header(record.method),
        "backbone": {
            **_backbone_header(model),
            **dict(backbone or {}),
            "fingerprint": fingerprint(left),
            "structure": plain_structure(model),
        },
        "layers": [target.path for target in record.targets],
        "extra": sorted(extras),
        "task": dict(task or {}),
        "versions": versions(),
    }
    stored = {path: layer.adapter.consolidated() for path, layer in adapted_layers(model).items()}
    tensors = _adapter_tensors(model, stored) | {f"extra.{name}": tensor for name, tensor in extras.items()}
    return tensorfile.write(path, header, tensors)


def _method_header(method: Method) -> dict[str, JSON]:
    info = name_of(type(method))
    return {
        "name": info.name,
        "distribution": info.distribution,
        "version": info.version,
        "arguments": method.arguments,
    }


def _backbone_header(model: nn.Module) -> dict[str, JSON]:
    """What the model says of itself: timm's name for it, or its class; not the arguments that it was built with."""
    config = getattr(model, "pretrained_cfg", None)
    architecture = config.get("architecture") if isinstance(config, Mapping) else None
    return {"name": architecture or f"{type(model).__module__}.{type(model).__qualname__}"}


def versions() -> dict[str, JSON]:
    """Versions of the packages that a result depends on, none of which is imported; optional ones where installed.

    What decodes videos is not among them: the data module says it, see `lightning_petl.data.video.decoding.Decoding`.
    """
    found: dict[str, JSON] = {name: _version(name) for name in ("lightning-petl", "torch", "timm", "pytorch-lightning")}
    optional = {name: _version(name) for name in ("torchvision", "transformers")}
    return found | {name: installed for name, installed in optional.items() if installed is not None}


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _adapter_tensors(model: nn.Module, adapters: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """Tensors of adapters and shared modules under their names in a file."""
    tensors = {
        f"adapters.{path}.{name}": tensor
        for path, adapter in adapters.items()
        for name, tensor in adapter.state_dict().items()
    }
    shared = model._modules.get(SHARED)
    if shared is not None:
        tensors |= {f"shared.{name}": tensor for name, tensor in shared.state_dict().items()}
    return tensors


def _extra_tensors(model: nn.Module, extra: Iterable[str]) -> dict[str, Tensor]:
    """Tensors of the backbone to store as they are: those asked for, those trained in place, and changed buffers."""
    state, record = plain_state(model), injection_of(model)
    names = dict.fromkeys(record.trained)
    for wanted in extra:
        found = [name for name in state if name == wanted or name.startswith(f"{wanted}.")]
        if not found:
            raise ConfigError(f"the model has no module {wanted!r}", where="extra", fix="name one, such as head")
        names |= dict.fromkeys(found)
    names |= dict.fromkeys(
        name for name, digest in record.buffers.items() if name in state and tensor_digest(state[name]) != digest
    )
    # An adapter folds into whatever bias its layer has, so that one may be stored as it was trained.
    overlap = {f"{path}.weight" for target in record.targets for path in target.layers} & set(names)
    if overlap:
        raise PETLError(f"{min(overlap)} is adapted and stored as it is", fix="adapt it, or train it in place")
    return {name: state[name] for name in names}


def _refuse_unsaved(model: nn.Module, extras: Mapping[str, Tensor]) -> None:
    adapted = adapted_layers(model)
    plain = {name: plain_name(name, adapted) for name in trainable(model)}
    unsaved = [name for name in plain.values() if name is not None and name not in extras]
    if unsaved:
        top = unsaved[0].rpartition(".")[0] or unsaved[0]
        raise PETLError(
            f"{len(unsaved)} trained parameters would not be saved, {unsaved[0]} first",
            where="extra",
            fix=f"name their module, as in extra=({top!r},)",
        )


def load_adapter(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Puts the adapters of a file onto a plain backbone, in place, after checking that they belong there.

    The adapters arrive in their consolidated form: for inference and merging. Training resumes from checkpoints.

    Args:
        model: The backbone that the adapters were made for, with the weights that it had then.
        path: A file that `save_adapter` wrote.

    Returns:
        The model itself.

    Raises:
        AdapterFileError: The file is damaged, or its tensors are not those of its method on this model.
        BackboneMismatch: The file was made for other weights, or another architecture.
        PluginError: Its method is not installed.
        PETLError: The model has adapters already. Any refusal leaves the model as it was.
    """
    header, tensors = tensorfile.read(path)
    if header["format"] != FORMAT:
        raise AdapterFileError(f"format {header['format']!r} is not {FORMAT!r}", where=f"{path}: format")
    extras = {name.removeprefix("extra."): tensor for name, tensor in tensors.items() if name.startswith("extra.")}
    method = build_method(header, str(path))
    _check_extras(model, header, extras, str(path))
    _check_fingerprint(model, header, extras, str(path))
    _check_structure(model, header, str(path))
    _inject(model, method, str(path))
    try:
        _load(
            model,
            header,
            {name: tensor for name, tensor in tensors.items() if not name.startswith("extra.")},
            str(path),
        )
    except BaseException:
        eject(model)
        raise
    state = plain_state(model)
    with torch.no_grad():
        for name, tensor in extras.items():
            state[name].copy_(tensor)
    injection_of(model).extra = tuple(extras)
    return model


def build_method(header: Header, path: str) -> Method:
    """The method that a header names, with the arguments it had.

    Raises:
        AdapterFileError: The header does not fit the installed method.
        PluginError: The method is not installed.
    """
    try:
        record = cast(dict[str, object], header["method"])
        name, distribution, arguments = str(record["name"]), str(record["distribution"]), record["arguments"]
    except (KeyError, TypeError):
        raise AdapterFileError("the header names no method", where=f"{path}: method") from None
    cls = method_named(name, distribution)
    try:
        return cls(**cast(dict[str, Any], arguments))
    except (TypeError, PETLError) as error:
        raise AdapterFileError(
            f"{name} does not take these arguments: {error}", where=f"{path}: method.arguments"
        ) from None


def _inject(model: nn.Module, method: Method, path: str) -> None:
    """Injects a file's method; whatever it raises, the file's arguments are to blame.

    Raises:
        AdapterFileError: The method cannot be put into this model.
        PETLError: The model has adapters already.
    """
    refuse_adapted(model)
    try:
        inject(model, method)
    except Exception as error:  # sizes come from the file, and a wrong one fails anywhere in torch
        reason = str(error).partition("\n")[0]
        raise AdapterFileError(
            f"{method!r} cannot be put into this model: {reason}", where=f"{path}: method.arguments"
        ) from error


def _check_extras(model: nn.Module, header: Header, extras: Mapping[str, Tensor], path: str) -> None:
    state, listed = plain_state(model), header.get("extra", list(extras))
    if not isinstance(listed, list):
        raise AdapterFileError(f"extra is {listed!r}, not a list of names", where=f"{path}: extra")
    differ = sorted(set(map(str, listed)) ^ extras.keys())
    if differ:
        what = "holds unlisted" if differ[0] in extras else "lacks"
        raise AdapterFileError(f"the file {what} tensor extra.{differ[0]}", where=f"{path}: extra.{differ[0]}")
    for name, tensor in extras.items():
        if name not in state:
            raise AdapterFileError(f"the backbone has no tensor {name}", where=f"{path}: extra.{name}")
        _check_like(f"extra.{name}", tensor, state[name], path)


def _check_like(name: str, tensor: Tensor, expected: Tensor, path: str) -> None:
    if tensor.shape != expected.shape:
        found, wanted = tuple(tensor.shape), tuple(expected.shape)
        raise AdapterFileError(f"{name} has shape {found}, this model needs {wanted}", where=f"{path}: {name}")
    if tensor.dtype != expected.dtype:
        raise AdapterFileError(f"{name} is {tensor.dtype}, this model needs {expected.dtype}", where=f"{path}: {name}")


def _check_fingerprint(model: nn.Module, header: Header, extras: Iterable[str], path: str) -> None:
    record = header.get("backbone")
    expected = record.get("fingerprint") if isinstance(record, dict) else None
    if fingerprint(tensor_digests(model, leave_out=extras)) != expected:
        name = record.get("name") if isinstance(record, dict) else None
        raise BackboneMismatch(
            "this backbone's weights are not those that the adapter was trained on",
            where=f"{path}: backbone.fingerprint",
            fix=f"load it onto {name} with its original weights, in their original dtype",
        )


def _check_structure(model: nn.Module, header: Header, path: str) -> None:
    """Refuses a backbone with the tensors of the file's, and other numbers that it computes with."""
    record = header.get("backbone")
    recorded = record.get("structure") if isinstance(record, dict) else None
    for name, (theirs, mine) in unlike(recorded if isinstance(recorded, dict) else {}, plain_structure(model)).items():
        raise BackboneMismatch(
            f"{name} in this backbone is {mine}, and {theirs} in the one of the file",
            where=f"{path}: backbone.structure.{name}",
            fix="build it with the arguments that it had",
        )


def _load(model: nn.Module, header: Header, tensors: Mapping[str, Tensor], path: str) -> None:
    """Loads adapters into an injected model, once names, shapes and dtypes are known to agree in both directions."""
    layers = adapted_layers(model)
    if list(layers) != header.get("layers"):
        raise AdapterFileError(
            "the method adapts other layers of this model than the file lists", where=f"{path}: layers"
        )
    adapters = {path: layer.adapter.consolidated() for path, layer in layers.items()}
    expected = _adapter_tensors(model, adapters)
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    for what, names in (("lacks", missing), ("holds unknown", unknown)):
        if names:
            raise AdapterFileError(
                f"the file {what} {len(names)} tensors, {names[0]} first", where=f"{path}: {names[0]}"
            )
    for name, tensor in tensors.items():
        _check_like(name, tensor, expected[name], path)
    with torch.no_grad():
        for name, tensor in tensors.items():
            expected[name].copy_(tensor)
    for path, adapter in adapters.items():
        layers[path].adapter = adapter.train(layers[path].training)


def save_merged(
    model: nn.Module, path: str | os.PathLike[str], header: Mapping[str, object], created: Sequence[str]
) -> str:
    """Writes a merged model under the plain backbone's own names; timm loads it without this package.

    Args:
        model: A model after `lightning_petl.merge`.
        path: The file; one that is there is replaced, whole.
        header: The header of the adapter file that was merged; method, backbone, task and versions are taken over.
        created: Tensors that the plain backbone lacks.

    Returns:
        The file's digest.
    """
    kept = {key: value for key, value in header.items() if key not in ("format", "digest")}
    full = {"format": MERGED_FORMAT, **kept, "created": list(created), "adapter": header.get("digest")}
    return tensorfile.write(path, full, plain_state(model))


def load_merged(model: nn.Module, path: str | os.PathLike[str]) -> Header:
    """Loads a merged file into a plain backbone of its architecture, strictly, and returns its header.

    Biases that merging created are added to their layers first.

    Raises:
        AdapterFileError: The file is damaged, is no merged file, or does not fit the model, which is left as it was.
        BackboneMismatch: The model has the file's tensors, but another structure, such as another number of heads.
    """
    header, tensors = tensorfile.read(path)
    if header["format"] != MERGED_FORMAT:
        raise AdapterFileError(f"format {header['format']!r} is not {MERGED_FORMAT!r}", where=f"{path}: format")
    refuse_adapted(model)
    expected = plain_state(model)
    created = _created(model, header.get("created"), tensors, str(path))
    wrong = sorted(expected.keys() ^ (tensors.keys() - created.keys()))
    if wrong:
        raise AdapterFileError(f"its tensors are not this backbone's: {wrong[0]} first", where=f"{path}: {wrong[0]}")
    for name, tensor in expected.items():
        _check_like(name, tensors[name], tensor, str(path))
    _check_structure(model, header, str(path))
    for name, layer in created.items():
        layer.bias = nn.Parameter(torch.zeros_like(tensors[name], device=layer.weight.device))
    model.load_state_dict(tensors, strict=True)
    return header


def _created(model: nn.Module, listed: object, tensors: Mapping[str, Tensor], path: str) -> dict[str, OutputLayer]:
    """The layers that get a bias which the plain backbone lacks, by the bias's name.

    Raises:
        AdapterFileError: The list names anything but the missing bias of a layer, or the file does not hold it.
    """
    if not isinstance(listed, list):
        raise AdapterFileError(f"created is {listed!r}, not a list of names", where=f"{path}: created")
    modules, found = dict(model.named_modules()), dict[str, OutputLayer]()
    for name in map(str, listed):
        owner, _, kind = name.rpartition(".")
        layer = modules.get(owner)
        if not isinstance(layer, OutputLayer) or kind != "bias" or layer.bias is not None:
            raise AdapterFileError(f"{name} is no bias that a layer of this backbone lacks", where=f"{path}: {name}")
        if name not in tensors:
            raise AdapterFileError(f"the file lacks tensor {name}", where=f"{path}: {name}")
        _check_like(name, tensors[name], layer.weight.new_empty(layer.weight.shape[0]), path)
        found[name] = layer
    return found
