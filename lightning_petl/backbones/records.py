"""Records of backbones compared, setting by setting.

Shapes and weights do not tell everything: a ViT of six heads has the tensors of one of three.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_petl.errors import ConfigError

_SIZES = ("dynamic_img_size", "dynamic_img_pad", "strict_img_size")
"""Arguments of timm that decide which images are taken, and not what becomes of one that was taken before."""

_OPTIONS = {
    "kind": "model",
    "name": "model.backbone",
    "arguments": "model.backbone_args",
    "frames": "data.frames",
    "head": "model.head and its settings",
}
"""Where a part of a backbone's record is set."""


def check_record(found: Mapping[str, Any], mine: Mapping[str, Any], what: str, where: str) -> None:
    """Compares what was recorded of a backbone and its head with those at hand.

    Args:
        found: What was recorded; where it lacks the arguments, kind and name alone are compared.
        mine: `Architecture.record` of the backbone at hand.
        what: What recorded it, "file" or "checkpoint".
        where: The place of the record, for messages.

    Raises:
        ConfigError: They differ; the text names the setting and where it is set.
    """
    of_weights = ("fingerprint", "structure")
    theirs = {"kind": "images"} | {key: value for key, value in found.items() if key not in of_weights}
    if not isinstance(found.get("arguments"), Mapping):
        theirs = dict(mine) | {key: theirs[key] for key in ("kind", "name") if key in theirs}
    for setting, (recorded, wanted) in differences(theirs, mine).items():
        top = setting.partition(".")[0]
        right: Any = theirs.get(top)
        if top == "arguments":
            right = {key: value for key, value in right.items() if key != "num_classes"}
        raise ConfigError(
            f"the backbone's {setting} is {shown(wanted)}, and {shown(recorded)} in the {what}",
            where=f"{where}.{setting}",
            fix=f"set {_OPTIONS.get(top, top)} to the {what}'s: {right}",
        )


def differences(found: Mapping[str, Any], mine: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings of which two records have different values, by their path such as ``arguments.num_heads``.

    Drop rates, the name of the weights behind that of a model (``.augreg_in21k``) and what only widens the sizes that
    are taken are no difference. A setting that one of the records lacks is None there.
    """
    ours, theirs = _flat(mine), _flat(found)
    if "arguments.num_classes" not in theirs:  # a record by hand; the head's shape tells
        ours.pop("arguments.num_classes", None)
    paths = dict.fromkeys([*ours, *theirs])
    return {path: (theirs.get(path), ours.get(path)) for path in paths if theirs.get(path) != ours.get(path)}


def _flat(record: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The settings of a record that decide what a model computes, by path; sequences are lists, as in JSON."""
    found: dict[str, Any] = {}
    for key, value in record.items():
        path = f"{above}{key}"
        if "drop" in key or key in _SIZES:
            continue
        if isinstance(value, Mapping):
            found |= _flat(value, f"{path}.")
        elif path == "name" and isinstance(value, str) and ":" not in value:
            found[path] = value.partition(".")[0]
        else:
            found[path] = _listed(value)
    return found


def shown(value: Any) -> str:
    """A setting's value in a message."""
    return "left out" if value is None else str(value)


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple | list) else value
