"""Parameters of the backbone that a recipe trains besides adapters and head, such as a norm or every bias."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence

from torch import nn

from lightning_petl.errors import ConfigError
from lightning_petl.store import plain_name
from lightning_petl.wrappers import adapted_layers

_WHERE = "model.train_parameters"


def train_further(model: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Lets frozen parameters of a backbone with adapters train.

    The bias of an adapted layer may train: the adapter acts on the layer as it is, and merging folds into the trained
    bias. Its weight may not, since the adapter is what changes that.

    Args:
        model: A backbone with adapters.
        patterns: Regular expressions, each a full match on parameter names in the plain backbone.

    Returns:
        The names of these parameters, in the backbone's order.

    Raises:
        ConfigError: A pattern is no regular expression, matches nothing, or matches the weight of an adapted layer.
    """
    adapted = adapted_layers(model)
    named = ((plain_name(name, adapted), parameter) for name, parameter in model.named_parameters())
    own = {name: parameter for name, parameter in named if name is not None}
    chosen = {name for pattern in patterns for name in _matched(pattern, own)}
    weights = {f"{path}.weight" for layer in adapted.values() for path in layer.target.layers}
    if overlap := sorted(chosen & weights):
        fix = "match its bias alone, or adapt other layers"
        raise ConfigError(f"{overlap[0]} belongs to an adapted layer, and its adapter trains", where=_WHERE, fix=fix)
    for name in chosen:
        own[name].requires_grad_(True)
    return tuple(name for name in own if name in chosen)


def _matched(pattern: str, names: Collection[str]) -> list[str]:
    try:
        found = [name for name in names if re.fullmatch(pattern, name)]
    except re.error as error:
        raise ConfigError(f"{pattern!r} is no regular expression: {error}", where=_WHERE) from None
    if not found:
        near = ", ".join(difflib.get_close_matches(pattern.replace("\\", ""), names, n=3, cutoff=0.3)) or "none"
        fix = f"near misses: {near}; patterns match parameter names in full"
        raise ConfigError(f"pattern {pattern!r} matches no parameter of the backbone", where=_WHERE, fix=fix)
    return found
