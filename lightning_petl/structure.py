"""What decides a model's function beside its tensors, as far as its modules say it.

A ViT of two heads has the tensors of one of four, and a file for one must not be loaded onto the other. Nothing in a
model tells the arguments that it was built with, but its modules keep the numbers that they compute with.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, cast

from torch import nn

from lightning_petl.adapter import JSON

ATTRIBUTES = (
    "approximate",
    "dilation",
    "eps",
    "global_pool",
    "groups",
    "kernel_size",
    "negative_slope",
    "num_attention_heads",
    "num_frames",
    "num_groups",
    "num_heads",
    "padding",
    "padding_mode",
    "patch_size",
    "shift_size",
    "stride",
    "tubelet_size",
    "window_size",
)
"""Names that torch, timm and transformers give to such numbers. Others may count calls, or depend on the machine."""

_ACTIVATIONS = "torch.nn.modules.activation"


def structure(modules: Iterable[nn.Module]) -> dict[str, JSON]:
    """The values of each attribute of `ATTRIBUTES` in some modules, and torch's activations, sorted and each once.

    Which module has which value is left out: a library may move them, and their tensors' names tell of that.
    """
    found: dict[str, set[str]] = {}
    for module in modules:
        if type(module).__module__ == _ACTIVATIONS:
            found.setdefault("activation", set()).add(json.dumps(type(module).__name__))
        for name in ATTRIBUTES:
            value = vars(module).get(name)
            if _is_plain(value):
                found.setdefault(name, set()).add(json.dumps(value))
    return {name: [cast(JSON, json.loads(value)) for value in sorted(found[name])] for name in sorted(found)}


def unlike(recorded: Mapping[str, Any], mine: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The attributes that two structures both have, with other values: those recorded, and those at hand."""
    both = sorted(recorded.keys() & mine.keys())
    return {name: (recorded[name], mine[name]) for name in both if recorded[name] != mine[name]}


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str)
