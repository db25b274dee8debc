"""The argument parser's messages of many lines, each as one line that names the field and the nearest known names."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable

from lightning_petl.errors import ConfigError
from lightning_petl.plugins import list_methods, unknown_method


def explain(message: str, cause: BaseException | None, parser: argparse.ArgumentParser) -> ConfigError:
    """What is wrong, in which field, and how to mend it.

    Args:
        message: The parser's message.
        cause: The exception that it reports; a nested parser's error is found underneath.
        parser: The parser that reports it, for the names that it knows.
    """
    where = _field(message)
    inner = _nested(cause)
    if inner is not None:
        return ConfigError(inner.what, where=_join(where, message, inner.where), fix=inner.fix)
    return _unknown_class(message, where) or _unknown_option(message, where, parser) or _wrong_value(message, where)


def _field(message: str) -> str:
    found = re.search(r'[Kk]ey "([^"]+)"', message)
    return found.group(1) if found else ""


def _nested(error: BaseException | None) -> ConfigError | None:
    while error is not None:
        if isinstance(error, ConfigError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _join(outer: str, message: str, inner: str) -> str:
    """The full name of a field that a nested parser knows by its last part."""
    given = re.search(r"NestedArg\(key='([^']+)'", message)
    path = f"{outer}.{given.group(1)}" if given else outer
    last = inner.rpartition(".")[2]
    return path if not last or path.endswith(last) else f"{path}.{last}"


def _unknown_class(message: str, where: str) -> ConfigError | None:
    """A class that is not there; where a method is asked for, the installed ones are named."""
    found = re.search(
        r"import path string:? ?'?([\w.]+)|class_path[^'\n]*'([\w.]+)'[^\n]*(?:not|Unable)|No module named '([\w.]+)'",
        message,
    )
    if not found:
        return None
    name = next(group for group in found.groups() if group)
    if ("method" in where or "method" in message) and name not in list_methods():
        return ConfigError(f"unknown method {name!r}", where=where or "model.method", fix=unknown_method(name))
    return ConfigError(f"no class {name!r} is known", where=where, fix="give a class name or an import path")


def _unknown_option(message: str, where: str, parser: argparse.ArgumentParser) -> ConfigError | None:
    found = re.search(
        r"Option '([^']+)' is not accepted|nrecognized arguments: *(?:--)?([\w.]+)|Key '([^']+)'", message
    )
    if not found:
        return None
    name = next(group for group in found.groups() if group)
    known = {action.dest for action in parser._actions}
    parent, _, last = name.rpartition(".")
    prefix = f"{parent}." if parent else ""
    near = [prefix + match for match in _near(last, (dest.rpartition(".")[2] for dest in known))]
    fix = f"did you mean {' or '.join(near)}?" if near else "see --help"
    return ConfigError(f"unknown option {name!r}", where=".".join(filter(None, (where, name))), fix=fix)


def _near(name: str, known: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name, sorted(set(known)), n=3)


def _wrong_value(message: str, where: str) -> ConfigError:
    expected = dict.fromkeys(re.findall(r"Expected an? <class '(\w+)'>", message))
    got = re.search(r"Got value: (.+)|Given value: (.+)", message)
    if expected and got:
        value = next(group for group in got.groups() if group).strip()
        kinds = " or ".join("null" if kind == "NoneType" else kind for kind in expected)
        return ConfigError(f"{value} is not of type {kinds}", where=where, fix="give a value of that type")
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    told = re.sub(r'^Parser key "[^"]+": *', "", lines[0]) if lines else "bad arguments"
    what = told or (lines[1] if len(lines) > 1 else "bad value")
    return ConfigError(re.sub(r"\s+", " ", what), where=where or "command line", fix="see --help")
