"""`lightning-petl merge ADAPTER --backbone NAME_OR_FILE --out FILE`: folds an adapter into its backbone, offline."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lightning_petl.backbones import Architecture, architecture
from lightning_petl.backbones.records import differences
from lightning_petl.deployment import publish
from lightning_petl.errors import AdapterFileError, ConfigError
from lightning_petl.merging import refuse_unfoldable
from lightning_petl.store import FORMAT, build_method, load_adapter
from lightning_petl.tensorfile import Header, read_header

_SUFFIXES = (".safetensors", ".pth", ".npz", ".bin")


def run(arguments: list[str]) -> int:
    """Writes the merged file, and ``certificate.json`` beside it; the inputs of the comparison are random."""
    parser = argparse.ArgumentParser("lightning-petl merge", description=__doc__)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--backbone", required=True, help="a name, or weights as model.pretrained takes")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args(arguments[1:])
    header = read_header(options.adapter)
    if header["format"] != FORMAT:
        raise AdapterFileError(
            "this is no adapter file", where=f"{options.adapter}: format", fix="give adapter.safetensors"
        )
    refuse_unfoldable(build_method(header, str(options.adapter)))
    chosen, weights = choose(header, options.backbone, str(options.adapter))
    model = load_adapter(chosen.build(weights), options.adapter).eval()
    inputs = chosen.example(model, 8)
    certificate = publish(model, header, options.out, chosen, [inputs], "random")
    print(
        f"{options.out}: {len(certificate.layers)} layers folded, largest float64 error {certificate.float64_error:.1e}"
    )
    return 0


def choose(header: Header, backbone: str, path: str) -> tuple[Architecture, bool | str]:
    """The architecture that a header names, and the weights to build it with; another name may bring others."""
    record: Any = header.get("backbone")
    if not isinstance(record, dict):
        raise AdapterFileError("the header does not say how to build the backbone", where=f"{path}: backbone")
    # A slash is in a path or in an id on the hub, and in no library's name of a model.
    are_weights = Path(backbone).exists() or ":" in backbone or "/" in backbone or backbone.endswith(_SUFFIXES)
    found = architecture(record, path)
    if are_weights:
        return found, backbone
    named = architecture(record | {"name": backbone}, path)
    if differences(found.record(), named.record()):
        fix = "give that name, or a file of its weights"
        raise ConfigError(f"{path} belongs to {found.name}, not {backbone}", where="--backbone", fix=fix)
    return named, True
