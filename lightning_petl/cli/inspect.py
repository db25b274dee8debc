"""`lightning-petl inspect FILE`: what an adapter or merged file holds, in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning_petl import tensorfile
from lightning_petl.cli.arguments import Parser


def run(arguments: list[str]) -> int:
    """Prints the header and the sizes of one file, once its digest is checked."""
    parser = Parser("lightning-petl inspect", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments[1:])
    header, tensors = tensorfile.read(options.file)
    found: dict[str, Any] = {
        **header,
        "tensors": {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()},
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "bytes": options.file.stat().st_size,
    }
    print(json.dumps(found, indent=2) if options.json else _words(found, str(options.file)))
    return 0


def _words(found: dict[str, Any], path: str) -> str:
    method, backbone, task = (found.get(key) or {} for key in ("method", "backbone", "task"))
    arguments = ", ".join(f"{key}={value}" for key, value in method.get("arguments", {}).items())
    classes = task.get("classes")
    lines = [
        f"{path}: {found['format']}, {found['bytes']:,} bytes",
        f"tensors   {len(found['tensors'])}, of {found['parameters']:,} values",
        f"method    {method.get('name')}({arguments}) of {method.get('distribution')} {method.get('version')}",
        f"backbone  {backbone.get('name')} {backbone.get('arguments')}",
        f"          fingerprint {backbone.get('fingerprint')}",
        *_frames(backbone),
        *_pixels(backbone),
        f"layers    {len(found.get('layers', []))} adapted",
        f"classes   {', '.join(classes) if classes else 'not recorded'}",
        f"created   {', '.join(found.get('created', [])) or 'nothing'}",
        f"digest    {found['digest']}, as its content",
    ]
    return "\n".join(lines)


def _frames(backbone: dict[str, Any]) -> list[str]:
    """What a backbone of videos takes, and the head that it has over the frames."""
    if "frames" not in backbone:
        return []
    head = backbone.get("head") or {}
    arguments = ", ".join(f"{key}={value}" for key, value in (head.get("arguments") or {}).items())
    under = f"under the {head['name']} head" if head.get("name") else "under the backbone's own head"
    under += f" ({arguments})" if arguments else ""
    return [f"frames    {backbone['frames']}, {under}"]


def _pixels(backbone: dict[str, Any]) -> list[str]:
    """The decode head of a backbone that gives each pixel a class."""
    if backbone.get("kind") != "segmentation":
        return []
    head = backbone.get("head") or {}
    read = "its own layers" if head.get("layers") is None else f"layers {head['layers']}"
    width = f" of {head['channels']} channels" if head.get("channels") else ""
    auxiliary = f", auxiliary heads on layers {head['auxiliary']}" if head.get("auxiliary") else ""
    return [f"pixels    {head.get('kind')} head{width} on {read}{auxiliary}"]
