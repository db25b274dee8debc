"""Files of tensors: what is written comes back, and a write that fails leaves what was there."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import files_by_hand as by_hand
import liars
import pytest
import torch
from safetensors import SafetensorError
from stored_models import trained
from torch import Tensor

from lightning_petl import AdapterFileError, save_adapter, tensorfile
from lightning_petl.testing import BACKBONES

HEADER = {"format": "test", "task": {"b": [1, 2.5, None, True], "a": "ü"}}
KINDS = {
    "float64": torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3),
    "float32": torch.linspace(-1, 1, 6).reshape(2, 3).T,  # not contiguous
    "float16": torch.tensor([6e4, -6e-8], dtype=torch.float16),
    "bfloat16": torch.tensor([3e38, -1e-38], dtype=torch.bfloat16),
    "float8": torch.tensor([1.0, -448.0]).to(torch.float8_e4m3fn),
    "complex": torch.tensor([1 - 2j]),
    "int64": torch.tensor([-(2**62), 7]),
    "uint8": torch.arange(5, dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    "slice": torch.arange(10.0)[2:7:2],
    "trained": torch.ones(2, requires_grad=True),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.safetensors"


def test_what_is_written_comes_back(path: Path) -> None:
    digest = tensorfile.write(path, HEADER, KINDS)
    header, tensors = tensorfile.read(path)
    assert header == HEADER | {"digest": digest}
    assert tensorfile.read_header(path) == header
    assert tensors.keys() == KINDS.keys()
    for name, tensor in KINDS.items():
        assert (tensors[name].dtype, tensors[name].shape) == (tensor.dtype, tensor.shape)
        assert tensorfile.tensor_digest(tensors[name]) == tensorfile.tensor_digest(tensor)
        assert torch.equal(tensors[name].to(torch.complex128), tensor.detach().to(torch.complex128))
    assert digest == by_hand.digest(path)


def test_the_digest_is_of_all_values_and_of_no_order(path: Path) -> None:
    digest = tensorfile.write(path, HEADER, KINDS)
    assert tensorfile.write(path, dict(reversed(HEADER.items())), dict(reversed(KINDS.items()))) == digest
    others = {
        "value": (HEADER, KINDS | {"scalar": torch.tensor(3.25)}),
        "name": (HEADER, {("float46" if name == "float64" else name): tensor for name, tensor in KINDS.items()}),
        "shape": (HEADER, KINDS | {"uint8": KINDS["uint8"][None]}),
        "dtype": (HEADER, KINDS | {"uint8": KINDS["uint8"].view(torch.int8)}),
        "no tensor": (HEADER, {name: tensor for name, tensor in KINDS.items() if name != "empty"}),
        "header": (HEADER | {"format": "tset"}, KINDS),
        "header key": (HEADER | {"more": None}, KINDS),
    }
    for header, tensors in others.values():
        assert tensorfile.write(path, header, tensors) != digest


@pytest.mark.parametrize("key", [{10: "a", 9: "b"}, {True: 1}, {None: 1}, {1.5: 1}], ids=str)
def test_a_header_is_what_json_makes_of_it(key: object, path: Path) -> None:
    """JSON has no keys but strings; the digest must be of what reading gives back."""
    tensorfile.write(path, {"task": key, "pair": (1, 2)}, {})
    with pytest.raises(AdapterFileError, match="no format"):
        tensorfile.read(path)
    tensorfile.write(path, HEADER | {"task": key, "pair": (1, 2)}, {})
    header, _ = tensorfile.read(path)
    assert header["pair"] == [1, 2]
    assert all(isinstance(name, str) for name in header["task"])


NOT_JSON = {
    "nan": float("nan"),
    "inf": float("inf"),
    "dtype": torch.float32,
    "set": {1, 2},
    "object": {"a": [object()]},
}


@pytest.mark.parametrize("value", NOT_JSON.values(), ids=NOT_JSON)
def test_a_header_value_that_is_no_json_is_named(value: object, path: Path) -> None:
    with pytest.raises(AdapterFileError, match=r"the header's task is no JSON value \[.*some\.safetensors: task\]"):
        tensorfile.write(path, {"format": "test", "task": value}, {})
    assert not path.exists()


BAD = {
    "nan": torch.tensor([1.0, torch.nan]),
    "infinity": torch.tensor([[1.0, -torch.inf]], dtype=torch.float64),
    "bfloat16": torch.tensor([1.0, torch.inf], dtype=torch.bfloat16),
    "float8": torch.tensor([1.0, torch.nan]).to(torch.float8_e5m2),
    "complex": torch.tensor([complex(0, torch.nan)]),
    "meta": torch.zeros(2, device="meta"),
}


@pytest.mark.parametrize("tensor", BAD.values(), ids=BAD)
def test_a_tensor_without_finite_values_is_named(tensor: Tensor, path: Path) -> None:
    with pytest.raises(AdapterFileError, match=r"tensor second (holds values that are not finite|has no values)"):
        tensorfile.write(path, HEADER, {"first": torch.ones(2), "second": tensor})
    assert not list(path.parent.iterdir())


def test_no_flipped_byte_passes(path: Path) -> None:
    """Every byte of a small file, header and data: refused, or read to the very same values."""
    save_adapter(trained(BACKBONES["toy"], liars.Honest(), head=False), path)
    content, (header, tensors) = path.read_bytes(), tensorfile.read(path)
    passed = []
    for position in range(len(content)):
        for bits in (1, 0x20) if position < by_hand.data_start(content) else (1,):
            by_hand.flip(path, content, position, bits)
            try:
                found, others = tensorfile.read(path)
            except AdapterFileError:
                continue
            passed.append(position)
            assert found == header
            assert all(torch.equal(others[name], value) for name, value in tensors.items())
    assert len(passed) < 10, "such as the e of 1e-05, which may be written E"


# -- writes that fail --------------------------------------------------------------------------------------------------


def out_of_space(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half(tensors: object, path: Path, metadata: object) -> None:
    path.write_bytes(b"half of a file")
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def interrupted(*args: object, **kwargs: object) -> None:
    raise KeyboardInterrupt


FAILURES: dict[str, tuple[str, Callable[..., None], type[BaseException]]] = {
    "saving": ("lightning_petl.tensorfile.save_file", out_of_space, AdapterFileError),
    "saving half": ("lightning_petl.tensorfile.save_file", half, AdapterFileError),
    "interrupted while saving": ("lightning_petl.tensorfile.save_file", interrupted, KeyboardInterrupt),
    "flushing": ("os.fsync", out_of_space, AdapterFileError),
    "permitting": ("pathlib.Path.chmod", out_of_space, AdapterFileError),
    "moving": ("os.replace", out_of_space, AdapterFileError),
    "interrupted while moving": ("os.replace", interrupted, KeyboardInterrupt),
    "temporary file": ("tempfile.mkstemp", out_of_space, AdapterFileError),
}


@pytest.mark.parametrize(("where", "fail", "error"), FAILURES.values(), ids=FAILURES)
def test_a_failed_write_leaves_the_old_file(
    where: str, fail: Callable[..., None], error: type[BaseException], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorfile.write(path, HEADER, KINDS)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        with pytest.raises(error) as caught:
            tensorfile.write(path, HEADER, {"other": torch.ones(3)})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path], "no half of a file is left behind"
    if error is AdapterFileError:
        assert caught.value.where == str(path)
        assert "space" in caught.value.what
    tensorfile.write(path, HEADER, {"other": torch.ones(3)})
    assert tensorfile.read(path)[1].keys() == {"other"}


def test_on_disk_before_its_name_and_the_name_after(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power may fail between any two steps; then the name must not stand for a file that is not there yet."""
    steps = []
    flush, move = os.fsync, os.replace

    def noted_flush(handle: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        flush(handle)

    def noted_move(source: object, to: object, **options: object) -> None:
        steps.append("move")
        move(source, to, **options)

    monkeypatch.setattr(os, "fsync", noted_flush)
    monkeypatch.setattr(os, "replace", noted_move)
    tensorfile.write(path, HEADER, KINDS)
    assert steps == ["file", "move", "folder"]


def test_a_file_system_that_flushes_no_folders(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flush = os.fsync

    def only_files(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(handle)

    monkeypatch.setattr(os, "fsync", only_files)
    tensorfile.write(path, HEADER, KINDS)
    tensorfile.read(path)


def test_places_that_cannot_be_written(path: Path) -> None:
    path.write_text("a file is no folder")
    for place in (path / "a.safetensors", path / "deep" / "a.safetensors", Path("/proc/a.safetensors"), path.parent):
        with pytest.raises(AdapterFileError, match=r"cannot write: .* - choose a folder that can be written") as caught:
            tensorfile.write(place, HEADER, {})
        assert caught.value.where == str(place)
    assert path.read_text() == "a file is no folder"


@contextmanager
def without_privileges() -> Iterator[None]:
    """Nothing is forbidden to root, so root's tests run this part as somebody else."""
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_folder_without_permission(path: Path) -> None:
    tensorfile.write(path, HEADER, KINDS)
    before = path.read_bytes()
    path.parent.chmod(0o555)
    with without_privileges(), pytest.raises(AdapterFileError, match=r"cannot write: Permission denied \[.*some\."):
        tensorfile.write(path, HEADER, {})
    path.parent.chmod(0o755)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_folders_are_made_and_files_are_as_readable_as_any(path: Path) -> None:
    place = path.parent / "new" / "deep" / "a.safetensors"
    tensorfile.write(place, HEADER, KINDS)
    plain = path.parent / "plain"
    plain.write_text("")
    assert place.stat().st_mode == plain.stat().st_mode


def in_another_process(path: Path, before: str) -> int:
    """Writes a megabyte over a file in a new process, after some code; its exit status."""
    code = f"""
import os, resource, signal, torch
from lightning_petl import tensorfile
from lightning_petl.errors import AdapterFileError
{before}
try:
    tensorfile.write({str(path)!r}, {{"format": "test"}}, {{"other": torch.ones(250_000)}})
except AdapterFileError as error:
    assert "cannot write" in str(error), error
    raise SystemExit(7)
"""
    return subprocess.run([sys.executable, "-c", code], timeout=120).returncode


def test_a_killed_write_leaves_the_old_file(path: Path) -> None:
    tensorfile.write(path, HEADER, KINDS)
    before = path.read_bytes()
    killing = """
def killed(tensors, path, metadata):
    path.write_bytes(bytes(400_000))
    os.kill(os.getpid(), signal.SIGKILL)
tensorfile.save_file = killed
"""
    assert in_another_process(path, killing) == -signal.SIGKILL
    assert path.read_bytes() == before
    left = [each for each in path.parent.iterdir() if each != path]
    assert [each.stat().st_size for each in left] == [400_000], "killed in the middle"
    assert all(each.name.startswith(".") and each.suffix == ".tmp" for each in left)
    tensorfile.read(path)


def test_a_real_limit_of_space(path: Path) -> None:
    """A limit on the size of files, as a quota is: the operating system itself cuts the write short."""
    tensorfile.write(path, HEADER, KINDS)
    before = path.read_bytes()
    assert in_another_process(path, "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))") == 7
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_is_replaced_while_it_is_open_stays_whole(path: Path) -> None:
    tensorfile.write(path, HEADER, {"weight": torch.ones(1000)})
    _, tensors = tensorfile.read(path)
    tensorfile.write(path, HEADER, {"weight": torch.zeros(10)})
    assert tensors["weight"].sum() == 1000
