"""Methods by name: built-in and third-party ones come through the same entry-point group, and none can break another.

Finding names reads metadata only, so that a listing costs no import of torch or of any plugin. A method's identity is
its distribution and its name. A bare name belongs to the built-in method, or to the first distribution that has it;
``distribution:name`` reaches every one.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.metadata import Distribution, EntryPoint
from typing import TYPE_CHECKING

from lightning_petl.errors import PluginError

if TYPE_CHECKING:
    from lightning_petl.adapter import Method

GROUP = "lightning_petl.methods"
API = "1"
"""Version of the plugin contract, compared with ``Method.petl_api``."""

_OWN = "lightning-petl"
_DECLARED_IN = "entry_points.txt"


@dataclass(frozen=True)
class MethodInfo:
    """One installed method.

    Attributes:
        name: Name of its entry point.
        cls: Its class, or None before it is imported and where that failed.
        distribution: The distribution that provides it.
        version: That distribution's version.
        summary: First line of the class's docstring; empty before it is imported.
        error: Why it cannot be used, or why its bare name is another's; None where all is well.
        value: What the entry point names, as ``module:Class``.
    """

    name: str
    cls: type[Method] | None
    distribution: str
    version: str
    summary: str = ""
    error: str | None = None
    value: str = ""

    @property
    def class_name(self) -> str:
        """The last part of what the entry point names."""
        return re.split(r"[:.]", self.value.partition("[")[0].strip())[-1]


class Methods(dict[str, MethodInfo]):
    """Installed methods by entry-point name, and those whose name is taken by ``distribution:name``.

    A lookup also takes ``distribution:name`` of each, and a class name that is only one method's; all in any case of
    letters.
    """

    def __missing__(self, key: str) -> MethodInfo:
        found = self._find(key)
        if found is None:
            raise KeyError(key)
        return found

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (isinstance(key, str) and self._find(key) is not None)

    def _find(self, key: str) -> MethodInfo | None:
        distribution, _, name = key.lower().rpartition(":")
        if distribution:
            among = [info for info in self.values() if info.distribution == _normalised(distribution)]
        else:
            among = [info for info in self.values() if info.error is None]
        by_name = [info for info in among if info.name.lower() == name]
        by_class = [info for info in among if info.class_name.lower() == name]
        for found in (by_name, by_class):
            if len(found) == 1:
                return found[0]
        return None


def scan() -> Methods:
    """All installed methods, from metadata alone; of two with one name, the built-in or the first keeps it.

    Names are compared in any case of letters. A class of a built-in method's name counts as that name too: a
    configuration file may name a method by its class.
    """
    found, holders = Methods(), dict[str, MethodInfo]()
    for info in sorted(_declared(), key=lambda info: info.distribution != _OWN):
        holder = holders.setdefault(info.name.lower(), info)
        namesake = holders.get(info.class_name.lower())
        if holder is info and namesake is not None and namesake.distribution == _OWN:
            holder = info if info.distribution == _OWN else namesake
        if holder is info:
            found[info.name] = info
        else:
            found[f"{info.distribution}:{info.name}"] = replace(info, error=info.error or _taken(holder, info))
    return found


def _taken(holder: MethodInfo, info: MethodInfo) -> str:
    kind = "is built in and cannot be shadowed" if holder.distribution == _OWN else "is taken"
    both = f"{holder.distribution} and {info.distribution} both provide it"
    return f"the name {holder.name!r} {kind}: {both}; select this one as {info.distribution}:{info.name}"


def _declared() -> Iterator[MethodInfo]:
    """What all distributions declare, in the order of the import path and, in one of its folders, of their names."""
    places: dict[str, int] = {}
    found: list[tuple[int, str, Distribution]] = []
    for dist in metadata.distributions():
        place = places.setdefault(_place(dist), len(places))
        if GROUP in _read(dist):
            found.append((place, _normalised(_field(dist, "Name")), dist))
    seen = set()
    for place, name, dist in sorted(found, key=lambda item: item[:2]):
        # A broken update may leave two versions of one distribution in one folder.
        if name and ((place, name) in seen or _is_shadowed(name, dist)):
            continue
        seen.add((place, name))
        yield from _methods_of(name or "unknown", dist)


def _place(dist: Distribution) -> str:
    return str(dist.locate_file(""))


def _methods_of(name: str, dist: Distribution) -> Iterator[MethodInfo]:
    version = _field(dist, "Version")
    try:
        entries = list(dist.entry_points.select(group=GROUP))
    except Exception as error:  # a file that no tool wrote; the other distributions' methods are listed all the same
        told = f"{_DECLARED_IN} cannot be read: {_told(error)}"
        yield MethodInfo(_DECLARED_IN, None, name, version, error=told)
        return
    for entry in entries:
        yield MethodInfo(entry.name, None, name, version, value=entry.value)


def _read(dist: Distribution) -> str:
    try:
        return dist.read_text(_DECLARED_IN) or ""
    except (OSError, UnicodeError):
        return ""


def _field(dist: Distribution, name: str) -> str:
    """A field of a distribution's metadata; empty where it has none, or they cannot be read."""
    try:
        return str(dist.metadata[name] or "")
    except Exception:  # what a broken distribution raises differs between Python's versions
        return ""


def _is_shadowed(name: str, dist: Distribution) -> bool:
    """Whether Python itself would take another copy of a distribution, which comes first on the import path."""
    try:
        return _place(metadata.distribution(name)) != _place(dist)
    except Exception:  # it cannot be found by its name
        return False


def _normalised(name: str) -> str:
    """A distribution's name in the form in which names are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def list_methods() -> dict[str, MethodInfo]:
    """All installed methods with their classes imported.

    A plugin that raises, exits, lacks a module or is no method is listed with its error and costs nothing else.
    """
    return Methods({name: _import(info) for name, info in scan().items()})


def load_method(name: str) -> type[Method]:
    """Imports one method by entry-point name, class name or ``distribution:name``, and no other.

    Raises:
        PluginError: No such method is installed, or it cannot be used.
    """
    methods = scan()
    if name not in methods:
        raise PluginError(f"no installed method is named {name!r}", where="method", fix=unknown_method(name))
    return _load(methods[name])


def _load(info: MethodInfo) -> type[Method]:
    """The class of one method, even if its bare name is another's."""
    if info.value:
        info = _import(replace(info, error=None))
    if info.cls is None:
        raise PluginError(f"method {info.name} of {info.distribution} cannot be used: {info.error}", where="method")
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
        # What a plugin prints must not get into the output of a command.
        with contextlib.redirect_stdout(sys.stderr):
            cls = EntryPoint(info.name, info.value, GROUP).load()
            reason = _not_usable(cls)
            summary = (cls.__doc__ or "").strip().partition("\n")[0]
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may even exit; whatever it does costs itself alone
        return replace(info, error=_told(error))
    return replace(info, error=reason) if reason else replace(info, cls=cls, summary=summary)


def _told(error: BaseException) -> str:
    """An error of anybody's, in one line that can be printed."""
    kind = type(error).__name__
    try:
        lines = [line for line in str(error).splitlines() if line.strip()]
    except Exception:  # its own text may fail, too
        lines = []
    return f"{kind}: {lines[0].strip()}".encode(errors="backslashreplace").decode() if lines else kind


def _not_usable(cls: object) -> str | None:
    from lightning_petl.adapter import Method  # late: the listing by metadata must not import torch

    if not (isinstance(cls, type) and issubclass(cls, Method)):
        return f"{cls!r} is no subclass of lightning_petl.Method"
    if cls.petl_api != API:
        return f"it is written for plugin API {cls.petl_api!r}, and this lightning-petl has {API!r}"
    if inspect.isabstract(cls):
        return f"it lacks {', '.join(sorted(cls.__abstractmethods__))}"
    return None


def name_of(cls: type[Method]) -> MethodInfo:
    """How a method's class is called in files: by its entry point, or by its import path where it has none."""
    path = f"{cls.__module__}:{cls.__qualname__}"
    infos = sorted(scan().values(), key=lambda info: info.error is not None)
    for info in infos:
        if _imported(info.value) is cls:
            return replace(info, cls=cls, error=None)
    for info in infos:
        # The class was reached past the module that its entry point names; only what bears its name is imported.
        if info.class_name == cls.__name__ and _import(info).cls is cls:
            return replace(info, cls=cls)
    return MethodInfo(path, cls, "", "", value=path)


def _imported(value: str) -> object:
    """What an entry point names, as far as its module is imported already."""
    module, _, attributes = value.partition("[")[0].strip().partition(":")
    found: object = sys.modules.get(module)
    try:
        for attribute in filter(None, attributes.split(".")):
            found = getattr(found, attribute, None)
    except Exception:  # a module may have an attribute hook that fails
        return None
    return found


def method_named(name: str, distribution: str) -> type[Method]:
    """The class that a file names. Nothing is imported because a file says so, except methods that are installed.

    Raises:
        PluginError: It is not installed, or cannot be used.
    """
    if ":" in name and not distribution:  # a class without an entry point: it must have been imported already
        return _class_at(name)
    named = [info for info in scan().values() if info.name == name]
    for info in named:
        if info.distribution == distribution:
            return _load(info)
    if named:
        have = named[0].distribution
        raise PluginError(
            f"method {name} is of {distribution!r}, but {have!r} provides it here",
            where="method.distribution",
            fix=_install(distribution),
        )
    raise PluginError(
        f"method {name} of distribution {distribution!r} is missing", where="method.name", fix=_install(distribution)
    )


def _install(distribution: str) -> str:
    return f"install {distribution}" if distribution else "install the plugin that provides it"


def _class_at(path: str) -> type[Method]:
    from lightning_petl.adapter import Method

    for cls in _subclasses(Method):  # type: ignore[type-abstract]
        if f"{cls.__module__}:{cls.__qualname__}" == path:
            reason = _not_usable(cls)
            if reason:
                raise PluginError(f"method {path} cannot be used: {reason}", where="method.name")
            return cls
    raise PluginError(f"method {path} is no installed plugin", where="method.name", fix="import its module first")


def _subclasses(cls: type[Method]) -> Iterator[type[Method]]:
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)
