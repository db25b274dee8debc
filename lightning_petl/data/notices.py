"""What the data room says to a user besides errors. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence


class DataWarning(UserWarning):
    """Something about a data set that is allowed but worth a look; each fact comes once, with its count."""


SHOWN = 20
"""Items of a long list that a message names; the rest is counted."""


def listed(items: Sequence[str], separator: str = ", ", shown: int = SHOWN) -> str:
    """Joins the first items on one line and counts those left over: ``a, b and 3 more``."""
    more = len(items) - shown
    return separator.join(items[:shown]) + (f" and {more} more" if more > 0 else "")
