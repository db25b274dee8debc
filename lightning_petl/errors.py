"""Every error that lightning-petl raises on purpose. Standard library only, so that any room may import it."""

from __future__ import annotations


class PETLError(Exception):
    """Base of all errors of this package; its text is one line that a user can act on.

    Args:
        what: What is wrong.
        where: The file or the configuration field it is about.
        fix: What to do about it.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what + (f" [{where}]" if where else "") + (f" - {fix}" if fix else ""))

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.fix)


def _rebuild(cls: type[PETLError], what: str, where: str, fix: str) -> PETLError:
    """Unpickles an error, as a DataLoader worker or another process sends it."""
    return cls(what, where=where, fix=fix)


class NotMergeable(PETLError):  # noqa: N818 - a public name, fixed by the interface
    """A layer cannot take an adapter that folds exactly; raised at injection, names layer and reason."""


class TargetNotFound(PETLError):  # noqa: N818 - a public name, fixed by the interface
    """A pattern or a site matches no layer of the backbone; the text lists near misses."""


class BackboneMismatch(PETLError):  # noqa: N818 - a public name, fixed by the interface
    """A file was made for another backbone than the one at hand."""


class AdapterFileError(PETLError):
    """A file is damaged, incomplete, of another format, or holds what it must not."""


class PluginError(PETLError):
    """A method plugin is missing, broken, or collides with another."""


class DataError(PETLError):
    """A data set, a list file or one of its samples cannot be used as it is."""


class ConfigError(PETLError):
    """A configuration value is unknown, of the wrong type, or contradicts another."""
