"""The argument parser of the commands that run without a Trainer."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from lightning_petl.cli.messages import explain


class Parser(argparse.ArgumentParser):
    """argparse's parser, with whole option names only and with errors in the one form that all commands share."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Turns the parser's message into one line.

        Raises:
            ConfigError: Always.
        """
        raise explain(message, None, self)
