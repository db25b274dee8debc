"""The command `lightning-petl`. Commands that need no Trainer start without Lightning."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from lightning_petl.errors import PETLError

COMMANDS = {
    "methods": "lists the installed methods",
    "inspect": "says what an adapter or merged file holds",
    "merge": "folds an adapter file into its backbone, offline",
    "verify": "checks files and their certificate again",
    "data": "makes small data sets, finds the bad files of large ones",
    "export": "writes an adapter file as PEFT's",
    "import": "makes an adapter file of PEFT's",
}
TRAINER_COMMANDS = {
    "fit": "trains a method, folds it and writes its files",
    "validate": "scores the validation split",
    "test": "scores the test split",
    "predict": "writes predictions",
}

_USAGE = """usage: lightning-petl COMMAND [options]

Adapt a frozen vision backbone, fold the adapter into it, serve it at the backbone's own cost.

commands:
"""


class Stopped(SystemExit):
    """A command that a signal ended.

    Args:
        text: What happened, in one line.
        status: The exit status: 128 and the signal's number.
    """

    def __init__(self, text: str, status: int) -> None:
        super().__init__(status)
        self.text, self.status = text, status


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits; a fault is one last line on standard error and an exit status above 0."""
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Runs one command and returns its exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE + "".join(f"  {name:<9} {text}\n" for name, text in (TRAINER_COMMANDS | COMMANDS).items()), end="")
        print("\n`lightning-petl COMMAND --help` shows a command's options.")
        return 0 if arguments else 2
    try:
        return _command(arguments[0])(arguments)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except Stopped as stop:
        return _fail(stop.text, stop.status)
    except SystemExit as exit_:
        if isinstance(exit_.code, str):
            return _fail(exit_.code, 1)
        return exit_.code or 0
    except BrokenPipeError as error:
        if arguments[0] not in COMMANDS:
            return _fail(_one_line(error), 1)
        # Who reads the output, such as `head`, has seen enough; what is left would be an error again at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except BaseException as error:
        if os.environ.get("LIGHTNING_PETL_DEBUG") == "1":
            raise
        return _fail(_one_line(error), 1)


def _command(name: str) -> Callable[[list[str]], int]:
    if name in COMMANDS:
        module = "import_" if name == "import" else name
        function: Callable[[list[str]], int] = import_module(f"lightning_petl.cli.{module}").run
        return function
    if name in TRAINER_COMMANDS or name.startswith("-"):
        trainer: Callable[[list[str]], int] = import_module("lightning_petl.cli.trainer").run
        return trainer
    import difflib

    known = [*TRAINER_COMMANDS, *COMMANDS]
    near = difflib.get_close_matches(name, known, n=2)
    fix = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(known)}"
    raise PETLError(f"unknown command {name!r}", where="command", fix=fix)


def _one_line(error: BaseException) -> str:
    """The line of an error that says what is wrong."""
    error = cause(error)
    if isinstance(error, PETLError) and "\n" not in str(error):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any(line.startswith("Original Traceback") for line in lines) and lines:
        # A DataLoader worker sends its traceback as text; its last line is the error itself.
        return lines[-1].partition(": ")[2] or lines[-1]
    kind = "" if isinstance(error, PETLError) else f"{type(error).__name__}: "
    fix = "" if isinstance(error, PETLError) else " - set LIGHTNING_PETL_DEBUG=1 for the traceback"
    return f"{kind}{lines[0] if lines else type(error).__name__}{_at(error)}{fix}"


def _at(error: BaseException) -> str:
    """The method whose code an error comes from, in brackets; an error of ours says itself what it is about."""
    if isinstance(error, PETLError):
        return ""
    from lightning_petl.cli.blame import method_at

    found = method_at(error)
    return f" [{found}]" if found else ""


def cause(error: BaseException) -> BaseException:
    """The error of ours underneath one that a parser or a loader wrapped around it; else what the parser wrapped."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, PETLError):
            return found
        found = found.__cause__ or found.__context__
    wrapped = ("Does not validate against any of the Union", "Problem with given class_path")
    while error.__cause__ is not None and str(error).startswith(wrapped):
        error = error.__cause__
    return error


def _fail(text: str, status: int) -> int:
    sys.stdout.flush()
    print(f"lightning-petl: error: {text}", file=sys.stderr, flush=True)
    return status
