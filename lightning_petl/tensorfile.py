"""Files of tensors with a JSON header and a digest over both: safetensors, written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
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
    """Shape and dtype as JSON text, such as ``[[3, 4], "float32"]``."""
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
        AdapterFileError: A tensor has no values, or some that are not finite; the header holds what JSON does not; or
            the folder cannot be written.
    """
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise AdapterFileError(f"tensor {name} has no values: it is on the meta device", where=str(path))
    refuse_non_finite(tensors, str(path))
    # Tied tensors are written under each of their names, as a state dict holds them.
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    full: Header = {key: _plain(key, value, path) for key, value in header.items()}
    digest = file_digest(full, owned)
    metadata = {key: canonical(value) for key, value in (full | {"digest": digest}).items()}
    replace(path, lambda temporary: save_file(owned, temporary, metadata))
    return digest


def _plain(key: str, value: object, path: str | os.PathLike[str]) -> object:
    """A header's value as reading gives it back; the digest is of that, since JSON turns keys into strings."""
    try:
        return cast(object, json.loads(canonical(value)))
    except (TypeError, ValueError, RecursionError):
        raise AdapterFileError(f"the header's {key} is no JSON value", where=f"{path}: {key}") from None


def refuse_non_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuses NaN and infinity.

    Raises:
        AdapterFileError: Naming the first tensor that holds one.
    """
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            raise AdapterFileError(f"tensor {name} holds values that are not finite", where=f"{where}: {name}")


def _is_finite(tensor: Tensor) -> bool:
    if tensor.is_floating_point() and tensor.element_size() == 1:
        tensor = tensor.to(torch.float32)  # torch has no isfinite for the eight-bit kinds
    return bool(torch.isfinite(tensor).all())


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
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp's 0600 would keep colleagues from reading the result
        temporary.replace(path)
        _flush_names(path.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        fix = "choose a folder that can be written, with room left"
        raise AdapterFileError(f"cannot write: {reason}", where=str(path), fix=fix) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _flush_names(folder: Path) -> None:
    """Asks for a folder's names to be on disk; not every system can do that, and the file is whole without it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_header(path: str | os.PathLike[str]) -> Header:
    """A file's header, without its tensors and without a check of its digest.

    Raises:
        AdapterFileError: There is no such file, or it is no safetensors file with a lightning-petl header.
    """
    return _open(path, lambda file: ())[0]


def read(path: str | os.PathLike[str]) -> tuple[Header, dict[str, Tensor]]:
    """A file's header and tensors, on the CPU, once its digest and its values are checked.

    Raises:
        AdapterFileError: The file is damaged, changed since it was written, or holds values that are not finite.
    """
    header, found = _open(path, lambda file: file.keys())  # type: ignore[no-untyped-call]
    tensors = dict(found)
    if file_digest(header, tensors) != header["digest"]:
        fix = "the file was damaged or changed after it was written; get it again from its source"
        raise AdapterFileError("digest does not match the file's content", where=f"{path}: digest", fix=fix)
    refuse_non_finite(tensors, str(path))
    return header, tensors


def _open(
    path: str | os.PathLike[str], wanted: Callable[[safe_open], Iterable[str]]
) -> tuple[Header, list[tuple[str, Tensor]]]:
    """The header and the wanted tensors, of one and the same file: another may be moved to its path meanwhile."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = [(name, file.get_tensor(name)) for name in wanted(file)]
    except FileNotFoundError:
        raise AdapterFileError("no such file", where=str(path)) from None
    except (SafetensorError, OSError) as error:
        raise AdapterFileError(f"not a lightning-petl file, or damaged: {error}", where=str(path)) from None
    if "format" not in metadata or "digest" not in metadata:
        raise AdapterFileError("not a lightning-petl file: its header has no format or digest", where=str(path))
    return {key: _value(key, text, path) for key, text in metadata.items()}, tensors


def _value(key: str, text: str, path: str | os.PathLike[str]) -> object:
    """One value of a header; what has no canonical form, as NaN and infinity, is refused."""
    try:
        value = json.loads(text)
        canonical(value)
    except (ValueError, RecursionError):
        raise AdapterFileError("the header's value is not of JSON", where=f"{path}: {key}") from None
    return cast(object, value)
