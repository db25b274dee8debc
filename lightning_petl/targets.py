"""From patterns and sites to the layers of a backbone. A pattern or a set of sites that matches nothing is an error."""

from __future__ import annotations

import difflib
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lightning_petl.adapter import Method, Separate, Target, Wraps
from lightning_petl.errors import ConfigError, NotMergeable, TargetNotFound
from lightning_petl.layers import OutputLayer, affine_layer, output_layer, read

Shapes = Mapping[str, tuple[int, int]]

logger = logging.getLogger(__name__)

SITES = {
    # The fused projection to queries, keys and values.
    "attn": r"(?:.*\.)?(?:qkv|Wqkv|query_key_value)",
    # The first layer of the channel MLP, under the names of timm and torchvision (fc1, 0), OpenCLIP and transformers.
    # A mixer's mlp_tokens and Swin v2's cpb_mlp (a table of position biases) are no channel MLPs.
    "mlp": r"(?:.*\.)?(?:mlp|mlp_channels|ffn)\.(?:fc1|0|c_fc|w12|weights_in|up_proj)|(?:.*\.)?intermediate\.dense",
}
"""Site name to a full match on module paths."""

_OUTSIDE_BLOCKS = re.compile(r"(?:.*\.)?(?:attn_pool|head|classifier|fc_norm)(?:\..*)?")
_SEPARATE: dict[str, tuple[tuple[set[str], tuple[str, ...]], ...]] = {
    "attn": tuple(
        (set(names), names)
        for names in (
            ("q", "k", "v"),
            ("q", "kv"),
            ("q_proj", "k_proj", "v_proj"),
            ("query", "key", "value"),
            ("to_q", "to_k", "to_v"),
        )
    ),
    # Gated MLPs; of SwiGLU's three layers, two read the input.
    "mlp": (
        ({"fc1_g", "fc1_x"}, ("fc1_g", "fc1_x")),
        ({"w1", "w2", "w3"}, ("w1", "w2")),
        ({"gate_proj", "up_proj"}, ("gate_proj", "up_proj")),
    ),
}
"""Layers that read a site's input together: all names that tell such a module, and those among them that read it."""


@dataclass(frozen=True)
class _Choice:
    """A module that a method adapts: at which site, and the layers inside it that share the adapter, if any."""

    site: str
    shared: tuple[str, ...] = ()


def find_targets(model: nn.Module, method: Method, shapes: Shapes | None = None) -> list[Target]:
    """The places that a method adapts, in the order of the model's modules.

    Args:
        model: A plain backbone.
        method: The method.
        shapes: For a method that wraps modules: widths of each module's first input and output, by path.

    Raises:
        TargetNotFound: A pattern matches no module, or no site exists in this model.
        NotMergeable: A matched layer cannot take an adapter that folds.
    """
    modules = dict(model.named_modules())
    if method.targets is None:
        chosen = _at_sites(modules, method.sites, method.separate)
    else:
        chosen = _at_patterns(modules, method.targets)
    _refuse_nested(chosen)
    _refuse_shared(model, chosen)
    if method.wraps == "module":
        return [_module_target(path, modules[path], shapes or {}) for path in modules if path in chosen]
    return [_target(path, chosen[path], modules[path], method.wraps) for path in modules if path in chosen]


def _at_patterns(modules: dict[str, nn.Module], patterns: Iterable[str]) -> dict[str, _Choice]:
    """Paths that any pattern matches in full."""
    chosen = {}
    for pattern in patterns:
        try:
            matched = [path for path in modules if path and re.fullmatch(pattern, path)]
        except re.error as error:
            raise ConfigError(f"{pattern!r} is no regular expression: {error}", where="targets") from None
        if not matched:
            near = ", ".join(_near_misses(pattern, modules)) or "none"
            raise TargetNotFound(
                f"pattern {pattern!r} matches no module",
                where="targets",
                fix=f"near misses: {near}; patterns match in full",
            )
        # An Identity holds the place of a layer that this model lacks, such as a ViT's q_norm.
        present = [path for path in matched if not isinstance(modules[path], nn.Identity)]
        if not present:
            reason = f"pattern {pattern!r} matches places without a layer alone: {', '.join(matched[:3])}"
            raise TargetNotFound(reason, where="targets", fix="leave it out for this backbone")
        chosen.update(dict.fromkeys(present, _Choice("custom")))
    return chosen


def _near_misses(pattern: str, modules: dict[str, nn.Module], most: int = 3) -> list[str]:
    """Module paths that look most like a pattern; of the same place in several blocks, the first."""
    plain = re.sub(r"\\d|\d+|\[[^]]*\]", "#", pattern)
    plain = re.sub(r"[\\^$(){}*+?|]", "", plain)
    shapes: dict[str, str] = {}
    for path in modules:
        shapes.setdefault(re.sub(r"\d+", "#", path), path)
    tails = {shape.rpartition(".")[2]: path for shape, path in shapes.items()}
    near = [shapes[shape] for shape in difflib.get_close_matches(plain, shapes, n=most, cutoff=0.5)]
    near += [tails[tail] for tail in difflib.get_close_matches(plain.rpartition(".")[2], tails, n=most, cutoff=0.5)]
    return list(dict.fromkeys(path for path in near if path))[:most]


def _at_sites(modules: dict[str, nn.Module], sites: Iterable[str], separate: Separate) -> dict[str, _Choice]:
    """Paths of all sites."""
    chosen: dict[str, _Choice] = {}
    for site in sites:
        if site not in SITES:
            near = difflib.get_close_matches(site, SITES, n=1) or sorted(SITES)
            raise ConfigError(f"unknown site {site!r}", where="sites", fix=f"did you mean {' or '.join(near)}?")
        found = {path: _Choice(site) for path in modules if re.fullmatch(SITES[site], path) and _inside_blocks(path)}
        for parent, names in _separate_layers(modules, site):
            if separate == "refuse" or not parent:  # nothing can be put in the place of the model itself
                raise NotMergeable(
                    f"site {site!r} is read by separate layers {', '.join(sorted(names))}, not by one",
                    where=parent,
                    fix="leave the site out with sites=, adapt single layers with targets=, or use a method that shares"
                    " one adapter among them",
                )
            paths = tuple(f"{parent}.{name}" if parent else name for name in names)
            found = {path: choice for path, choice in found.items() if path not in paths}
            if separate == "share":
                found[parent] = _Choice(site, paths)
            else:
                found |= dict.fromkeys(paths, _Choice(site))
        if not found:
            logger.warning("this backbone has no site %r; nothing is adapted there", site)
        chosen |= found
    if sites and not chosen:
        raise TargetNotFound(
            f"this backbone has none of the sites {', '.join(sites)}",
            where="sites",
            fix="name layers with targets= (regular expressions on module paths)",
        )
    return chosen


def _inside_blocks(path: str) -> bool:
    return not _OUTSIDE_BLOCKS.fullmatch(path)


def _separate_layers(modules: dict[str, nn.Module], site: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Modules whose input several layers read, and the names of these layers."""
    children: dict[str, set[str]] = defaultdict(set)
    for path in modules:
        parent, _, name = path.rpartition(".")
        children[parent].add(name)
    for parent, names in children.items():
        for telling, readers in _SEPARATE[site]:
            if telling <= names and _inside_blocks(parent):
                yield parent, readers


def _refuse_nested(chosen: Iterable[str]) -> None:
    """A module inside an adapted one would be adapted twice."""
    for path in chosen:
        outer = next((other for other in chosen if path.startswith(f"{other}.")), None)
        if outer is not None:
            raise NotMergeable(f"it is inside {outer}, which is adapted too", where=path, fix="target one of them")


def _refuse_shared(model: nn.Module, chosen: Mapping[str, _Choice]) -> None:
    """A layer or a weight that is registered in two places would change in both when the adapter folds into one."""
    modules: dict[nn.Module, list[str]] = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        modules[module].append(path)
    tensors: dict[torch.Tensor, list[str]] = defaultdict(list)
    for name, tensor in model.named_parameters(remove_duplicate=False):
        tensors[tensor].append(name)
    named = {path: module for module, paths in modules.items() for path in paths}
    for path in (inner for outer, choice in chosen.items() for inner in (outer, *choice.shared)):
        homes = modules[named[path]]
        if len(homes) > 1:
            raise NotMergeable(f"the layer is used in several places: {', '.join(homes)}", where=path)
        for tensor in named[path].parameters(recurse=False):
            if len(tensors[tensor]) > 1:
                raise NotMergeable(f"its weight is shared: {', '.join(tensors[tensor])}", where=path)


def _target(path: str, choice: _Choice, module: nn.Module, wraps: Wraps) -> Target:
    if wraps == "outputs":
        layer = output_layer(path, module)
        width = layer.weight.shape[1] if layer.weight.dim() > 1 else layer.weight.shape[0]
        return _described(path, choice.site, [layer], int(width), (path,))
    names = {inner: inner.removeprefix(path).removeprefix(".") for inner in choice.shared or (path,)}
    layers = {inner: affine_layer(inner, module.get_submodule(name)) for inner, name in names.items()}
    widths = {inner: read(layer).in_features for inner, layer in layers.items()}
    if len(set(widths.values())) > 1:
        raise NotMergeable(
            f"its layers read inputs of different widths: {widths}", where=path, fix="leave the site out"
        )
    return _described(path, choice.site, list(layers.values()), next(iter(widths.values())), tuple(layers))


def _described(path: str, site: str, layers: Sequence[OutputLayer], width: int, paths: tuple[str, ...]) -> Target:
    maps = [read(layer) for layer in layers]
    weight = maps[0].weight
    has_bias = any(each.bias is not None for each in maps)
    outputs = sum(each.out_features for each in maps)
    return Target(path, site, width, outputs, has_bias, weight.device, adapter_dtype(weight.dtype), paths)


def _module_target(path: str, module: nn.Module, shapes: Shapes) -> Target:
    if path not in shapes:
        reason = "the model's forward never calls it with features on the last axis, or the model could not be run"
        raise NotMergeable(reason, where=path, fix="adapt other modules, or pass inputs=")
    first = next(module.parameters(), torch.empty(()))
    width, out = shapes[path]
    return Target(path, "custom", width, out, False, first.device, adapter_dtype(first.dtype))


def adapter_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of an adapter's parameters: float64 in front of float64, float32 otherwise."""
    return torch.float64 if dtype == torch.float64 else torch.float32
