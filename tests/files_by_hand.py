"""The file format by code that shares nothing with the package: what a second implementation of it would do."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "I64": "int64", "I32": "int32", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
Change = Callable[[dict[str, Any], dict[str, Tensor]], object]
"""Changes a header and its tensors, in place."""


def parse(path: Path) -> tuple[dict[str, str], dict[str, tuple[list[int], str, bytes]]]:
    """A safetensors file: its metadata, and shape, dtype and bytes of each tensor."""
    content = path.read_bytes()
    start = data_start(content)
    table = json.loads(content[8:start])
    metadata = table.pop("__metadata__")
    return metadata, {
        name: (entry["shape"], DTYPES[entry["dtype"]], content[start:][slice(*entry["data_offsets"])])
        for name, entry in table.items()
    }


def data_start(content: bytes) -> int:
    """Where the tensors' bytes begin: after eight bytes of length and the header of that length."""
    (length,) = struct.unpack("<Q", content[:8])
    return 8 + int(length)


def header(path: Path) -> dict[str, Any]:
    return {key: json.loads(text) for key, text in parse(path)[0].items()}


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def described(shape: list[int], dtype: str) -> bytes:
    return json.dumps([shape, dtype]).encode()


def digest(path: Path) -> str:
    """sha256 over the other header values, then name, shape, dtype and bytes of each tensor in order of name."""
    found = hashlib.sha256(canonical({key: value for key, value in header(path).items() if key != "digest"}))
    for name, (shape, dtype, content) in sorted(parse(path)[1].items()):
        found.update(name.encode() + described(shape, dtype) + content)
    return found.hexdigest()


def fingerprint(model: nn.Module, left_out: str) -> str:
    """sha256 over name and digest (of shape, dtype and bytes) of each persistent tensor of a plain backbone."""
    listed = []
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(left_out):
            array = tensor.numpy()
            content = described(list(array.shape), str(array.dtype)) + array.tobytes()
            listed.append([name, hashlib.sha256(content).hexdigest()])
    return hashlib.sha256(canonical(listed)).hexdigest()


def forge(path: Path, change: Change) -> Path:
    """Rewrites a file with other values in it and a digest that fits them, as somebody with intent would."""
    values, tensors = header(path), load_file(path)
    change(values, tensors)

    def save(digest: str) -> None:
        full = values | {"digest": digest}
        save_file(tensors, path, {key: json.dumps(value) for key, value in full.items()})

    save("to be computed from what stands in the file")
    save(digest(path))
    return path


def set_in(key: str, **values: object) -> Change:
    return lambda header, tensors: header[key].update(values)


def drop_in(key: str, name: str) -> Change:
    return lambda header, tensors: header[key].pop(name)


def replaced(key: str, value: object) -> Change:
    return lambda header, tensors: header.update({key: value})


def without(key: str) -> Change:
    return lambda header, tensors: header.pop(key)


def tensor(name: str, change: Callable[[Tensor], Tensor]) -> Change:
    return lambda header, tensors: tensors.update({name: change(tensors[name])})


def lose(name: str) -> Change:
    return lambda header, tensors: tensors.pop(name)


def add(name: str, shape: tuple[int, ...] = (4,)) -> Change:
    return lambda header, tensors: tensors.update({name: torch.ones(shape)})


def rename(old: str, new: str) -> Change:
    return lambda header, tensors: tensors.update({new: tensors.pop(old)})


def poison(value: float) -> Callable[[Tensor], Tensor]:
    def poisoned(values: Tensor) -> Tensor:
        values.view(-1)[1] = value
        return values

    return poisoned


def flip(path: Path, content: bytes, position: int, bits: int = 1) -> None:
    """Writes the content with some bits of one byte changed."""
    changed = bytearray(content)
    changed[position] ^= bits
    path.write_bytes(changed)
