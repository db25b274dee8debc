"""`lightning-petl merge ADAPTER --backbone NAME_OR_FILE --out FILE`: folds an adapter into its backbone, offline."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_petl import backbones
from lightning_petl.deployment import publish
from lightning_petl.errors import AdapterFileError
from lightning_petl.merging import refuse_unfoldable
from lightning_petl.store import FORMAT, build_method, load_adapter
from lightning_petl.tensorfile import Header, read_header


def run(arguments: list[str]) -> int:
    """Writes the merged file, and ``certificate.json`` beside it; the inputs of the comparison are random."""
    parser = argparse.ArgumentParser("lightning-petl merge", description=__doc__)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--backbone", required=True, help="a timm name with its weights, or a file of weights")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args(arguments[1:])
    header = read_header(options.adapter)
    if header["format"] != FORMAT:
        raise AdapterFileError(
            "this is no adapter file", where=f"{options.adapter}: format", fix="give adapter.safetensors"
        )
    refuse_unfoldable(build_method(header, str(options.adapter)))
    build = builder(header, options.backbone, str(options.adapter))
    model = load_adapter(build(True), options.adapter).eval()
    size = backbones.input_config(model).image_size
    images = torch.randn(8, 3, *size, generator=torch.Generator().manual_seed(0))
    certificate = publish(model, header, options.out, lambda: build(False), [images], "random")
    print(
        f"{options.out}: {len(certificate.layers)} layers folded, largest float64 error {certificate.float64_error:.1e}"
    )
    return 0


def builder(header: Header, backbone: str, path: str) -> Callable[[bool], nn.Module]:
    """How to build the backbone that a header names; the argument says whether with weights."""
    record: Any = header.get("backbone")
    if not isinstance(record, dict) or not isinstance(record.get("arguments"), dict):
        raise AdapterFileError("the header does not say how to build the backbone", where=f"{path}: backbone")
    arguments = dict(record["arguments"])
    num_classes = int(arguments.pop("num_classes", 0))
    is_file = Path(backbone).is_file() or ":" in backbone or Path(backbone).suffix in (".safetensors", ".pth", ".npz")
    name, weights = (str(record["name"]), backbone) if is_file else (backbone, True)

    def build(pretrained: bool) -> nn.Module:
        return backbones.create(name, arguments, num_classes, weights if pretrained else False)

    return build
