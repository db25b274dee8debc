"""Methods by name: built-in and third-party ones come through the same entry-point group, and none can break another.

Finding names reads metadata only, so that a listing costs no import of torch or of any plugin.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from lightning_petl.errors import PluginError

if TYPE_CHECKING:
    from lightning_petl.adapter import Method

GROUP = "lightning_petl.methods"
API = "1"
"""Version of the plugin contract, compared with ``Method.petl_api``."""

_OWN = "lightning-petl"


@dataclass(frozen=True)
class MethodInfo:
    """One installed method.

    Attributes:
        name: Name of its entry point.
        cls: Its class, or None before it is imported and where that failed.
        distribution: The distribution that provides it.
        version: That distribution's version.
        summary: First line of the class's docstring; empty before it is imported.
        error: Why it cannot be used, or None.
        value: What the entry point names, as ``module:Class``.
    """

    name: str
    cls: type[Method] | None
    distribution: str
    version: str
    summary: str = ""
    error: str | None = None
    value: str = ""


class Methods(dict[str, MethodInfo]):
    """Installed methods by entry-point name; a lookup also takes a class name, and either in any case of letters."""

    def __missing__(self, key: str) -> MethodInfo:
        found = self._find(key)
        if found is None:
            raise KeyError(key)
        return found

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (isinstance(key, str) and self._find(key) is not None)

    def _find(self, key: str) -> MethodInfo | None:
        usable = [info for info in self.values() if info.error is None]
        by_name = {info.name.lower(): info for info in usable}
        by_class = {info.value.rpartition(":")[2].lower(): info for info in usable}
        return by_name.get(key.lower()) or by_class.get(key.lower())


def scan() -> Methods:
    """All installed methods, from metadata alone; of two with one name, the built-in or the first keeps it."""
    found = Methods()
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: _distribution(entry)[0] != _OWN):
        distribution, version = _distribution(entry)
        info = MethodInfo(entry.name, None, distribution, version, value=entry.value)
        holder = dict.get(found, entry.name)
        if holder is None:
            found[entry.name] = info
            continue
        kind = "is built in and cannot be shadowed" if holder.distribution == _OWN else "is taken"
        error = f"the name {entry.name!r} {kind}: {holder.distribution} and {distribution} both provide it"
        found[f"{distribution}:{entry.name}"] = replace(info, error=error)
    return found


def _distribution(entry: EntryPoint) -> tuple[str, str]:
    if entry.dist is None:
        return "unknown", ""
    # Names are compared in their normalised form (PEP 503).
    return re.sub(r"[-_.]+", "-", entry.dist.name).lower(), entry.dist.version


def list_methods() -> dict[str, MethodInfo]:
    """All installed methods with their classes imported.

    A plugin that raises, exits, lacks a module or is no method is listed with its error and costs nothing else.
    """
    return Methods({name: _import(info) for name, info in scan().items()})


def load_method(name: str) -> type[Method]:
    """Imports one method by entry-point or class name, and no other.

    Raises:
        PluginError: No such method is installed, or it cannot be used.
    """
    methods = scan()
    if name not in methods:
        raise PluginError(f"no installed method is named {name!r}", where="method", fix=unknown_method(name))
    info = _import(methods[name])
    if info.cls is None:
        raise PluginError(f"method {name} of {info.distribution} cannot be used: {info.error}", where="method")
    return info.cls


def unknown_method(name: str) -> str:
    """What to tell a user who asked for a method that is not there."""
    methods = list_methods()
    usable = sorted(name for name, info in methods.items() if info.error is None)
    near = difflib.get_close_matches(name.lower(), [known.lower() for known in usable], n=2)
    meant = [known for known in usable if known.lower() in near]
    hint = f"did you mean {' or '.join(meant)}? " if meant else ""
    failed = "; ".join(f"{info.distribution} failed: {info.error}" for info in methods.values() if info.error)
    return f"{hint}installed: {', '.join(usable)}" + (f"; {failed}" if failed else "")


def _import(info: MethodInfo) -> MethodInfo:
    if info.error is not None:
        return info
    try:
        cls = EntryPoint(info.name, info.value, GROUP).load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may even exit; whatever it does costs itself alone
        return replace(info, error=f"{type(error).__name__}: {error}".splitlines()[0])
    reason = _not_usable(cls)
    if reason:
        return replace(info, error=reason)
    return replace(info, cls=cls, summary=(cls.__doc__ or "").strip().partition("\n")[0])


def _not_usable(cls: object) -> str | None:
    from lightning_petl.adapter import Method  # late: the listing by metadata must not import torch

    if not (isinstance(cls, type) and issubclass(cls, Method)):
        return f"{cls!r} is no subclass of lightning_petl.Method"
    if cls.petl_api != API:
        return f"it is written for plugin API {cls.petl_api!r}, and this lightning-petl has {API!r}"
    return None


def name_of(cls: type[Method]) -> MethodInfo:
    """How a method's class is called in files: by its entry point, or by its import path where it has none."""
    path = f"{cls.__module__}:{cls.__qualname__}"
    for info in scan().values():
        if info.error is None and info.value == path:
            return replace(info, cls=cls)
    return MethodInfo(path, cls, "", "", value=path)


def method_named(name: str, distribution: str) -> type[Method]:
    """The class that a file names. Nothing is imported because a file says so, except methods that are installed.

    Raises:
        PluginError: It is not installed.
    """
    from lightning_petl.adapter import Method

    if ":" in name:  # a class without an entry point: it must have been imported already
        for cls in _subclasses(Method):  # type: ignore[type-abstract]
            if f"{cls.__module__}:{cls.__qualname__}" == name:
                return cls
        raise PluginError(f"method {name} is no installed plugin", where="method.name", fix="import its module first")
    methods = scan()
    if not dict.__contains__(methods, name):
        fix = f"install {distribution}" if distribution else "install the plugin that provides it"
        raise PluginError(f"method {name} of distribution {distribution!r} is missing", where="method.name", fix=fix)
    if methods[name].distribution != distribution:
        have = methods[name].distribution
        raise PluginError(
            f"method {name} is of {distribution!r}, but {have!r} provides it here", where="method.distribution"
        )
    return load_method(name)


def _subclasses(cls: type[Method]) -> Iterator[type[Method]]:
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)
