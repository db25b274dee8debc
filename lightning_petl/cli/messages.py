"""The argument parser's messages of many lines, each as one line that names the field and the nearest known names."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Iterator

from lightning_petl.errors import ConfigError
from lightning_petl.plugins import list_methods, unknown_method

_SHOWN = 20
"""Known names that a message lists where none is near; a longer list belongs into --help."""

_NO_SETTINGS = ("help", "config", "print_config", "print_shtab")


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
    return (
        _missing(message, where, parser)
        or _unknown_class(message, where, parser)
        or _unknown_option(message, where, parser)
        or _wrong_value(message, where)
    )


def unusable_class(message: str, cause: BaseException) -> ConfigError | None:
    """A class that lacks a package, or one of a list that cannot be made; None for any other error.

    Args:
        message: The parser's message, which has the reason of each class of a list.
        cause: The exception that it reports; of a list, merely that a list is no class.
    """
    found = re.search(r"Problem with given class_path '([\w.]+)':\s+(.+)", message)
    if not found or not (isinstance(cause, ImportError) or str(cause).startswith("Not a valid subclass")):
        return None
    path, reason = found.groups()
    where = "trainer.logger" if path.startswith("pytorch_lightning.loggers.") else path
    fix = "pip install 'lightning-petl[tensorboard]'" if "tensorboard" in reason else ""
    return ConfigError(f"{path.rpartition('.')[2]} cannot be made: {reason.strip()}", where=where, fix=fix)


def _field(message: str) -> str:
    found = re.search(r'[Kk]ey "([^"]+)"|^argument (?:-\w+/)?(?:--)?([\w.]+)', message)
    return next(filter(None, found.groups()), "") if found else ""


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


def _missing(message: str, where: str, parser: argparse.ArgumentParser) -> ConfigError | None:
    found = re.search(r"following arguments are required: (.+)", message)
    if not found:
        return None
    names = found.group(1).strip()
    reads_files = hasattr(parser, "parser_mode")  # jsonargparse's, not argparse's
    fix = "give it on the command line" + (" or in a file with --config" if reads_files else "; see --help")
    return ConfigError(f"required and not given: {names}", where=where or ("" if "," in names else names), fix=fix)


def _unknown_class(message: str, where: str, parser: argparse.ArgumentParser) -> ConfigError | None:
    """A class that is not there or of another kind; where a method is asked for, the installed ones are named."""
    other = re.search(r"Import path ([\w.]+) does not correspond to a subclass of (\w+)", message)
    found = re.search(
        r"import path string:? ?'?([\w.]+)|class_path[^'\n]*'([\w.]+)'|No module named '([\w.]+)'",
        message,
    )
    if other or not found or re.search(r"Expected an? <class '(?:int|float|bool|str)'>", message):
        return other and ConfigError(f"{other.group(1)} is no {other.group(2)}", where=where, fix="give a subclass")
    name = next(group for group in found.groups() if group)
    if ("method" in where or "method" in message) and name not in list_methods():
        return ConfigError(f"unknown method {name!r}", where=where or "model.method", fix=unknown_method(name))
    near = _near(name, _classes(where, parser))
    fix = f"did you mean {' or '.join(near)}?" if near else "give a class name or an import path"
    return ConfigError(f"no class {name!r} is known", where=where, fix=fix)


def _classes(field: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """Names of the classes that a field takes: of every class in its type hint, the subclasses imported so far."""
    hints = " ".join(str(getattr(action, "_typehint", "")) for action in parser._actions if action.dest == field)
    for path in re.findall(r"[\w.]+\.\w+", hints):
        module, _, name = path.rpartition(".")
        waiting = [getattr(sys.modules.get(module), name, None)]
        while waiting:
            cls = waiting.pop()
            if isinstance(cls, type):
                yield cls.__name__
                waiting += type.__subclasses__(cls)


def _unknown_option(message: str, where: str, parser: argparse.ArgumentParser) -> ConfigError | None:
    found = re.search(
        r"Option '([^']+)' is not accepted|nrecognized arguments: *(--[\w.-]+|.+)|Key '([^']+)'"
        r"|not accept option '([^']+)'",
        message,
    )
    if not found:
        return None
    given = next(group for group in found.groups() if group)
    if found.group(2) and not given.startswith("--"):
        return ConfigError(f"unexpected {given!r}", where="command line", fix="options start with --")
    name = given.removeprefix("--").removesuffix(".class_path").removesuffix(".init_args")
    return ConfigError(
        f"unknown option {name!r}", where=".".join(filter(None, (where, name))), fix=_options(name, parser)
    )


def _options(name: str, parser: argparse.ArgumentParser) -> str:
    """Which known options an unknown one may have meant; where none is near, all of them if they are few."""
    known = set(_known(parser))
    first, dot, rest = name.partition(".")
    near = [head + dot + rest for head in _near(first, (dest.partition(".")[0] for dest in known)) if head != first]
    if dot and not near:
        siblings = (dest.partition(".")[2] for dest in known if dest.startswith(first + dot))
        near = [first + dot + match for match in _near(rest, siblings)]
    if near:
        return f"did you mean {' or '.join(near)}?"
    if not known:
        return "there are no options here"
    return f"known here: {', '.join(sorted(known))}" if len(known) <= _SHOWN else "see --help"


def _known(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Names of a parser's settings, and of those of its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _known(command)
        elif action.dest not in _NO_SETTINGS and not action.dest.endswith(".help"):
            yield action.dest


def _near(name: str, known: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name, sorted(set(known)), n=3)


def _wrong_value(message: str, where: str) -> ConfigError:
    got = re.search(r"Got value: (.+)|Given value: (.+)", message)
    value = next((group for group in got.groups() if group), "").strip() if got else ""
    kinds = dict.fromkeys(re.findall(r"Expected an? <class '(\w+)'>", message))
    choices = dict.fromkeys(re.findall(r"Literal\[([^]]+)\]", message))
    if got and choices:
        return ConfigError(f"{value} is not one of {', '.join(choices)}", where=where, fix="choose one of them")
    if got and kinds:
        types = " or ".join("null" if kind == "NoneType" else kind for kind in kinds)
        return ConfigError(f"{value} is not of type {types}", where=where, fix="give a value of that type")
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    told = re.sub(r'^Parser key "[^"]+": *|^argument [^:]+: *', "", lines[0]) if lines else "bad arguments"
    what = told or (lines[1] if len(lines) > 1 else "bad value")
    return ConfigError(re.sub(r"\s+", " ", what), where=where or "command line", fix="see --help")
