"""`lightning-petl verify FILE...`: checks digests, fingerprint and certificate again, from the files alone."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_petl import tensorfile
from lightning_petl.errors import AdapterFileError, PETLError
from lightning_petl.merging import EXACT
from lightning_petl.store import FORMAT, MERGED_FORMAT, fingerprint
from lightning_petl.tensorfile import Header, tensor_digest

_NAMES = ("adapter.safetensors", "merged.safetensors", "certificate.json")


def run(arguments: list[str]) -> int:
    """Prints one line a check; the first that fails is an error."""
    parser = argparse.ArgumentParser("lightning-petl verify", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="files, or a run folder")
    options = parser.parse_args(arguments[1:])
    files = [file for path in options.files for file in _expand(path)]
    loaded = {path: tensorfile.read(path) for path in files if path.suffix != ".json"}
    for path, (header, tensors) in loaded.items():
        print(f"{path}: {header['format']}, digest and {len(tensors)} tensors as written")
    for path in files:
        if path.suffix == ".json":
            _check_certificate(path, loaded)
    return 0


def _expand(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = [path / name for name in _NAMES if (path / name).exists()]
    if not found:
        raise AdapterFileError("the folder holds no adapter, merged file or certificate", where=str(path))
    return found


def _check_certificate(path: Path, loaded: dict[Path, tuple[Header, dict[str, Tensor]]]) -> None:
    """Compares a certificate with itself and with the files beside it."""
    try:
        certificate: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        digests, base, layers = certificate["digests"], certificate["base"], certificate["layers"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterFileError(f"no certificate: {error}", where=str(path)) from None
    _same(fingerprint(base), digests["base"], f"{path}: digests.base", "the fingerprint of the listed tensors")
    worst = max((layer["float64"] for layer in layers.values()), default=0.0)
    if not worst <= EXACT:
        raise PETLError(f"a layer's float64 error is {worst:.1e}, above {EXACT:.0e}", where=f"{path}: layers")
    for file, (header, tensors) in loaded.items():
        backbone: Any = header.get("backbone")
        _same(backbone.get("fingerprint"), digests["base"], f"{file}: backbone.fingerprint", "the certificate's base")
        if header["format"] == FORMAT:
            _same(header["digest"], digests["adapter"], f"{file}: digest", "the certificate's adapter")
        elif header["format"] == MERGED_FORMAT:
            _same(header["digest"], digests["merged"], f"{file}: digest", "the certificate's merged file")
            _check_frozen(file, tensors, base, layers)
    print(f"{path}: {len(layers)} layers, largest float64 error {worst:.1e}, of these files")


def _check_frozen(path: Path, tensors: dict[str, Tensor], base: dict[str, str], layers: dict[str, Any]) -> None:
    """Every tensor that no adapter was folded into is the backbone's own, to the bit."""
    folded = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    for name, digest in base.items():
        if name not in folded and tensor_digest(tensors[name]) != digest:
            raise AdapterFileError(f"{name} is not the backbone's own", where=f"{path}: {name}")


def _same(found: object, expected: object, where: str, what: str) -> None:
    if found != expected:
        raise AdapterFileError(f"{str(found)[:16]} is not {what}, {str(expected)[:16]}", where=where)
