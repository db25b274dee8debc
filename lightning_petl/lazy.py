"""Names of a package that are imported when they are first used (PEP 562)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def attributes(
    package: dict[str, Any], files: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """The functions ``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: Its ``globals()``, which hold ``__all__`` by the time that its names are listed.
        files: The names by the module below the package that has them.
    """
    file_of = {name: file for file, names in files.items() for name in names}

    def get(name: str) -> object:
        if name not in file_of:
            raise AttributeError(f"module {package['__name__']!r} has no attribute {name!r}")
        package[name] = value = getattr(import_module(f"{package['__name__']}.{file_of[name]}"), name)
        return value

    return get, lambda: sorted({*package, *package["__all__"]})
