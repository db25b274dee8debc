"""timm's backbones: built by name and keyword arguments, with weights that are checked name by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from lightning_petl.data.input_config import InputConfig
from lightning_petl.errors import ConfigError

TimmArgument = bool | int | float | str | None | list[int] | list[float] | list[str]
"""What a keyword argument of a timm model may be, in YAML and in a file's header."""

# These open files or reach out to a network; they are no part of an architecture, and a file's header may not set them.
_NOT_ARCHITECTURE = {
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "num_classes",
    "scriptable", "exportable", "no_jit", "features_only",
}  # fmt: skip


def create(
    name: str, arguments: Mapping[str, TimmArgument], num_classes: int, pretrained: bool | str = False
) -> nn.Module:
    """Builds a backbone with a new head.

    Args:
        name: timm's name of a model, with a tag where several weights exist: ``vit_base_patch16_224.augreg_in21k``.
        arguments: Keyword arguments of the model, such as ``{"img_size": 32, "drop_path_rate": 0.1}``.
        num_classes: Outputs of the head; 0 for none.
        pretrained: True for timm's own weights of that name, a file for others (see `weights_file`), False for none.

    Raises:
        ConfigError: The name, an argument or the file is wrong; the text says which.
    """
    check_name(name)
    forbidden = sorted(_NOT_ARCHITECTURE & arguments.keys())
    if forbidden:
        raise ConfigError(
            f"{forbidden[0]} is no argument of an architecture", where=f"model.backbone_args.{forbidden[0]}"
        )
    file = weights_file(pretrained) if isinstance(pretrained, str) else None
    try:
        kwargs: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in arguments.items()}
        model = timm.create_model(name, pretrained=pretrained is True, num_classes=num_classes, **kwargs)
    except TypeError as error:
        raise ConfigError(f"{name} does not take these arguments: {error}", where="model.backbone_args") from None
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        fix = "name a local file of weights, or false for none, with model.pretrained"
        raise ConfigError(f"cannot build {name}: {reason}", where="model.backbone", fix=fix) from error
    if file is not None:
        load_weights(model, file)
    assert isinstance(model, nn.Module)
    side = kwargs.get("img_size")
    if side is not None:  # timm's configuration keeps the size of its weights, and some models keep no other trace
        config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
        config["input_size"] = (3, *(side if isinstance(side, tuple) else (side, side)))
    return model


def check_name(name: str) -> None:
    """Refuses a name that timm does not have.

    Raises:
        ConfigError: With the nearest names.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        fix = f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()"
        raise ConfigError(f"unknown backbone {name!r}", where="model.backbone", fix=fix)
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        near = difflib.get_close_matches(tag, tags, n=3) or tags[:5]
        fix = f"did you mean {' or '.join(f'{architecture}.{known}' for known in near)}?"
        raise ConfigError(f"unknown weights {tag!r} of {architecture}", where="model.backbone", fix=fix)


def weights_file(spec: str) -> Path:
    """The file that a setting names: a path, or ``package:path`` for one that ships inside a package.

    Raises:
        ConfigError: There is no such file.
    """
    package, colon, inside = spec.partition(":")
    shipped = bool(colon) and package.isidentifier() and not Path(spec).exists()
    try:
        path = Path(str(files(package).joinpath(inside))) if shipped else Path(spec)
    except ModuleNotFoundError:
        path = Path(spec)
    if not path.is_file():
        raise ConfigError(
            f"no file of weights {spec}", where="model.pretrained", fix="give a .safetensors, .pth or .npz"
        )
    return path


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads weights in timm's naming, all but the head's, which stays new.

    Raises:
        ConfigError: The file is damaged, or its names or shapes are not this model's.
    """
    if path.suffix == ".npz":  # the original ViT weights (Google's Flax files), which timm's models read themselves
        model.load_pretrained(str(path))  # type: ignore[operator]
        return
    head = f"{head_path(model)}."
    try:
        found = timm.models.load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(f"cannot read weights: {error}", where=str(path)) from error
    state: dict[str, Tensor] = {name: tensor for name, tensor in found.items() if not name.startswith(head)}
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(head)}
    for what, names in (("lacks", own.keys() - state.keys()), ("has unknown", state.keys() - own.keys())):
        if names:
            raise ConfigError(f"the file of weights {what} {min(names)}", where=str(path), fix=_ARCHITECTURE_FIX)
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            shapes = f"{tuple(tensor.shape)}, the model's is {tuple(own[name].shape)}"
            raise ConfigError(f"{name} in the file is {shapes}", where=str(path), fix=_ARCHITECTURE_FIX)
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)


_ARCHITECTURE_FIX = "set model.backbone and model.backbone_args to the architecture of the file"


def head_path(model: nn.Module) -> str:
    """Module path of the classifier.

    Raises:
        ConfigError: The model has none.
    """
    classifier = model.get_classifier()  # type: ignore[operator]
    path: str
    for path, module in model.named_modules():
        if module is classifier and path:
            return path
    raise ConfigError(f"{type(model).__name__} has no single classifier", where="model.backbone")


def input_config(model: nn.Module) -> InputConfig:
    """How a backbone's own weights want their input: normalisation, size, resampling, crop."""
    config = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or config["input_size"][-2:]
    return InputConfig(
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        image_size=(int(size[0]), int(size[1])),
        interpolation=config["interpolation"],
        crop_pct=float(config["crop_pct"]),
    )
