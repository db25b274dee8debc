"""`lightning-petl import DIR --from peft --backbone NAME --out FILE`: another package's adapter as an adapter file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from lightning_petl import backbones, peft_format
from lightning_petl.cli.arguments import Parser
from lightning_petl.errors import ConfigError
from lightning_petl.exchange import import_peft
from lightning_petl.injection import injection_of
from lightning_petl.store import save_adapter


def run(arguments: list[str]) -> int:
    """Writes an adapter file for a timm backbone; its head is the one that the folder stores, or there is none."""
    parser = Parser("lightning-petl import", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--from", dest="source", choices=["peft"], required=True, help="the package that wrote it")
    parser.add_argument("--backbone", required=True, help="timm's name of the backbone that it was trained on")
    parser.add_argument("--weights", metavar="FILE", help="the backbone's weights; timm's own where left out")
    parser.add_argument("--backbone-args", default="{}", metavar="JSON", help="arguments of the timm model, as JSON")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE")
    options = parser.parse_args(arguments[1:])
    name, settings = options.backbone, _settings(options.backbone_args)
    num_classes = _classes(name, settings, options.folder)
    architecture = backbones.TimmClassifier(name, settings, num_classes)
    model = import_peft(architecture.build(options.weights or True), options.folder)
    save_adapter(model, options.out, backbone=architecture.record())
    head = f"a head of {num_classes} outputs" if num_classes else "no head"
    print(f"{options.out}: {len(injection_of(model).targets)} layers of {injection_of(model).method}, {head}")
    return 0


def _settings(text: str) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"no JSON: {error}", where="--backbone-args") from None
    if not isinstance(settings, dict):
        raise ConfigError("it is no JSON object", where="--backbone-args", fix='give one such as {"img_size": 32}')
    return settings


def _classes(name: str, settings: dict[str, Any], folder: Path) -> int:
    """Outputs of the head that a folder stores; 0 where it stores none."""
    _, tensors = peft_format.read(folder)
    with torch.device("meta"):
        head = backbones.head_path(backbones.create(name, settings, 2))
    weight = tensors.get(f"{head}.weight")
    return 0 if weight is None else len(weight)
