"""Configuration files, read once before the parser reads them: faults by file and line, and where a field was set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import yaml

from lightning_petl.errors import ConfigError, PETLError

_SUFFIXES = (".yaml", ".yml", ".json")
_NO_PART = ("class_path", "init_args", "dict_kwargs")
"""Keys that say how a class is written down; the name of a field does not show them."""

Error = TypeVar("Error", bound=PETLError)


class Place(NamedTuple):
    """Where a field was set: ``file:line``, or empty for the command line; and to what, as it was written."""

    at: str
    value: str


class ConfigFiles:
    """All fields that a command line sets, in words and in files, from left to right.

    Args:
        arguments: The words after ``lightning-petl``; the first is the command.

    Raises:
        ConfigError: A file is missing or no text, is no YAML, holds no mapping, or sets a field twice.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._places: dict[str, list[Place]] = defaultdict(list)
        for option, value in _options(arguments):
            field = ".".join(part for part in option.split(".") if part not in _NO_PART)
            if field in ("config", "c"):
                if value and "://" not in value:
                    self._read(Path(value), "", command=arguments[0])
            elif "." not in field and value.endswith(_SUFFIXES) and Path(value).is_file():
                self._read(Path(value), field, command=arguments[0])  # as in --model FILE
            elif field:
                self._places[field].append(Place("", value))

    def _read(self, path: Path, prefix: str, command: str) -> None:
        root = _root(path)
        for name, place in _fields(path, root, prefix):
            # A file for several commands holds each one's settings below its name.
            self._places[name.removeprefix(f"{command}.")].append(place)

    def names(self, group: str) -> bool:
        """Whether a class is chosen for a group, such as ``data``: by ``--data NAME``, or a file's ``class_path``."""
        return any(place.value for place in self._places.get(group, ()))

    def located(self, error: Error) -> Error:
        """The error again, with the full name of its field, and the file and line that set it, where one did."""
        field, comma, rest = error.where.partition(",")
        name = self._full_name(field, error.what)
        place = "" if name is None else self._place(name, error.what)
        where = ", ".join(filter(None, (name or field, place)))
        return type(error)(error.what, where=where + comma + rest, fix=error.fix)

    def _place(self, name: str, what: str) -> str:
        """Where the value was set that an error is about; a value that a later one overrides is checked too."""
        places = self._places[name]
        told = [place.at for place in places if place.value and place.value in what]
        groups = [place.at for place in places if not place.value]
        if told or not groups:
            return told[-1] if told else places[-1].at
        return groups[0] if len(groups) == 1 else ""  # of several that set a group, none can be blamed

    def _full_name(self, field: str, what: str) -> str | None:
        """A field's name among those that were set: parsers know some by their last part, or by their group alone."""
        if not field:
            return None
        values = {
            name: place.value
            for name, places in self._places.items()
            for place in places
            if place.value in what.split()
        }
        inside = [name for name in values if name.startswith(f"{field}.")]
        if field in self._places and field not in values and len(inside) == 1:
            return inside[0]
        if field in self._places:
            return field
        head, dot, _ = field.partition(".")
        last = field.rpartition(".")[2]
        ends = [name for name in self._places if name.endswith(f".{last}") and (not dot or name.startswith(head + dot))]
        return ends[0] if len(ends) == 1 else None


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    for index, argument in enumerate(arguments):
        if argument.startswith("-"):
            option, equals, value = argument.partition("=")
            following = arguments[index + 1 : index + 2]
            yield option.lstrip("-"), value if equals else "".join(following)


def _root(path: Path) -> yaml.MappingNode:
    if not path.is_file():
        missing = "is not a file" if path.exists() else "does not exist"
        raise ConfigError(f"the configuration {missing}", where=str(path), fix="correct the path after --config")
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError:
        raise ConfigError("the configuration is not UTF-8 text", where=str(path), fix="save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"the configuration cannot be read: {error.strerror}", where=str(path)) from None
    except yaml.YAMLError as error:
        raise _bad_yaml(path, error) from None
    if root is None:
        raise ConfigError("the configuration is empty", where=str(path), fix="write settings into it")
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            "the configuration is no mapping of names to settings", where=_at(path, root), fix="write `name: value`"
        )
    return root


def _bad_yaml(path: Path, error: yaml.YAMLError) -> ConfigError:
    mark, start = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    context = getattr(error, "context", None)
    if context and start is not None:
        problem += f" {context} that starts in line {start.line + 1}"
    where = str(path) if mark is None else f"{path}:{mark.line + 1}"
    return ConfigError(f"this is no YAML: {problem}", where=where, fix="check indentation, brackets and quotes there")


def _fields(path: Path, node: yaml.Node, prefix: str) -> Iterator[tuple[str, Place]]:
    """All fields below a node with their places.

    Raises:
        ConfigError: A mapping sets a key twice, of which YAML would take the last without a word.
    """
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _fields(path, item, prefix)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen and name != "<<":
                raise ConfigError(f"{name} is set twice", where=_at(path, key), fix="keep one of the two lines")
            seen.add(name)
            field = prefix if name in _NO_PART else ".".join(filter(None, (prefix, name)))
            if name not in _NO_PART[1:]:
                text = value.value if isinstance(value, yaml.ScalarNode) else ""
                yield field, Place(_at(path, key), text)
            yield from _fields(path, value, field)


def _at(path: Path, node: yaml.Node) -> str:
    return f"{path}:{node.start_mark.line + 1}"
