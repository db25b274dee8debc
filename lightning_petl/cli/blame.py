"""Whose code an error comes from: a method's own, or something else's."""

from __future__ import annotations

import sys
import traceback
from types import CodeType, FrameType
from typing import TYPE_CHECKING

from lightning_petl.plugins import name_of

if TYPE_CHECKING:
    from lightning_petl.adapter import Method


def method_at(error: BaseException) -> str:
    """The method in whose code an error was raised, in words; empty where it was raised outside of any.

    Args:
        error: With its traceback.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        method = _method_of(frame)
        name = "" if method is None else _function(type(method), frame.f_code)
        if method is not None and name:
            info = name_of(type(method))
            return f"method {info.name}{f' of {info.distribution}' if info.distribution else ''}, {name}"
    return ""


def _method_of(frame: FrameType) -> Method | None:
    """The method whose function runs in a frame, or that some other function takes as its first argument."""
    adapter = sys.modules.get("lightning_petl.adapter")  # where nothing imported it, there is no method
    if adapter is None or not frame.f_code.co_argcount:
        return None
    first = frame.f_locals.get(frame.f_code.co_varnames[0])
    return first if isinstance(first, adapter.Method) else None


def _function(cls: type[Method], code: CodeType) -> str:
    """The name of a class's function with some code, inherited or not; empty where it is none of its own."""
    return next(
        (
            name
            for each in cls.__mro__
            for name, value in vars(each).items()
            if getattr(value, "__code__", None) is code
        ),
        "",
    )
