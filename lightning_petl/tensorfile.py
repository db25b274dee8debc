"""Files of tensors with a JSON header and a digest over both: safetensors, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import Buffer

from lightning_petl.errors import AdapterFileError

Header = dict[str, object]


def tensor_digest(tensor: Tensor) -> str:
    """sha256 over a tensor's shape, dtype and little-endian bytes."""
    digest = hashlib.sha256(_describe(tensor).encode())
    digest.update(_bytes(tensor))
    return digest.hexdigest()


def _describe(tensor: Tensor) -> str:
    return json.dumps([list(tensor.shape), str(tensor.dtype).removeprefix("torch.")])


def _bytes(tensor: Tensor) -> Buffer:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return cast(Buffer, flat.view(torch.uint8).numpy())


def canonical(value: object) -> str:
    """JSON with sorted keys and without spaces, so that equal values have equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def file_digest(header: Mapping[str, object], tensors: Mapping[str, Tensor]) -> str:
    """sha256 over the canonical header, then name, shape, dtype and bytes of each tensor in order of name."""
    digest = hashlib.sha256(canonical({key: value for key, value in header.items() if key != "digest"}).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(_describe(tensors[name]).encode())
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def write(path: str | os.PathLike[str], header: Mapping[str, object], tensors: Mapping[str, Tensor]) -> str:
    """Writes a file and returns its digest; a file that was there before survives any failure.

    Raises:
        AdapterFileError: A tensor is not finite, or the folder cannot be written.
    """
    refuse_non_finite(tensors, str(path))
    # Tied tensors are written under each of their names, as a state dict holds them.
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    full = dict(header) | {"digest": file_digest(header, owned)}
    metadata = {key: canonical(value) for key, value in full.items()}
    replace(path, lambda temporary: save_file(owned, temporary, metadata))
    return str(full["digest"])


def refuse_non_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuses NaN and infinity.

    Raises:
        AdapterFileError: Naming the first tensor that holds one.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise AdapterFileError(f"tensor {name} holds values that are not finite", where=where)


def replace(path: str | os.PathLike[str], save: Callable[[Path], None]) -> None:
    """Lets a function write a temporary file beside ``path``, then moves it there, flushed to disk.

    The temporary file is in the same folder, since a move between file systems is a copy that can be cut short.

    Raises:
        AdapterFileError: The folder or the file cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        save(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp's 0600 would keep colleagues from reading the result
        temporary.replace(path)
    except OSError as error:
        fix = "choose a folder that can be written, with room left"
        raise AdapterFileError(f"cannot write: {error.strerror}", where=str(path), fix=fix) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_header(path: str | os.PathLike[str]) -> Header:
    """A file's header, without its tensors and without a check of its digest.

    Raises:
        AdapterFileError: There is no such file, or it is no safetensors file with a lightning-petl header.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        header = {key: json.loads(value) for key, value in metadata.items()}
    except FileNotFoundError:
        raise AdapterFileError("no such file", where=str(path)) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterFileError(f"not a lightning-petl file: {error}", where=str(path)) from None
    if "format" not in header or "digest" not in header:
        raise AdapterFileError("not a lightning-petl file: its header has no format or digest", where=str(path))
    return header


def read(path: str | os.PathLike[str]) -> tuple[Header, dict[str, Tensor]]:
    """A file's header and tensors, on the CPU, once its digest and its values are checked.

    Raises:
        AdapterFileError: The file is damaged, changed since it was written, or holds values that are not finite.
    """
    header = read_header(path)
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise AdapterFileError(f"cannot be read: {error}", where=str(path)) from None
    if file_digest(header, tensors) != header["digest"]:
        fix = "the file was damaged or changed after it was written; get it again from its source"
        raise AdapterFileError("digest does not match the file's content", where=f"{path}: digest", fix=fix)
    refuse_non_finite(tensors, str(path))
    return header, tensors
