"""From patterns and sites to the layers of a backbone. A pattern or a set of sites that matches nothing is an error."""

from __future__ import annotations

import difflib
import logging
import re
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn

from lightning_petl.adapter import Method, Target
from lightning_petl.errors import ConfigError, NotMergeable, TargetNotFound
from lightning_petl.layers import affine_layer, read

logger = logging.getLogger(__name__)

SITES = {
    # The fused projection to queries, keys and values.
    "attn": r"(?:.*\.)?(?:qkv|Wqkv|query_key_value)",
    # The first layer of the channel MLP, under the names of timm and torchvision (fc1, 0), OpenCLIP and transformers.
    # A mixer's mlp_tokens and Swin v2's cpb_mlp (a table of position biases) are no channel MLPs.
    "mlp": r"(?:.*\.)?(?:mlp|mlp_channels|ffn)\.(?:fc1|0|c_fc)|(?:.*\.)?intermediate\.dense",
}
"""Site name to a full match on module paths."""

_OUTSIDE_BLOCKS = re.compile(r"(?:.*\.)?(?:attn_pool|head|classifier|fc_norm)(?:\..*)?")
_SEPARATE = {
    "attn": (
        {"q", "k", "v"},
        {"q", "kv"},
        {"q_proj", "k_proj", "v_proj"},
        {"query", "key", "value"},
        {"to_q", "to_k", "to_v"},
    ),
    "mlp": ({"fc1_g", "fc1_x"}, {"w1", "w2", "w3"}, {"gate_proj", "up_proj"}),
}


def find_targets(model: nn.Module, method: Method) -> list[Target]:
    """The layers that a method adapts, in the order of the model's modules.

    Raises:
        TargetNotFound: A pattern matches no module, or no site exists in this model.
        NotMergeable: A matched layer cannot take an adapter that folds.
    """
    modules = dict(model.named_modules())
    chosen = _at_sites(modules, method.sites) if method.targets is None else _at_patterns(modules, method.targets)
    _refuse_shared(model, chosen)
    return [_target(path, chosen[path], modules[path]) for path in modules if path in chosen]


def _at_patterns(modules: dict[str, nn.Module], patterns: Iterable[str]) -> dict[str, str]:
    """Paths that any pattern matches in full, as ``path -> "custom"``."""
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
        chosen.update(dict.fromkeys(matched, "custom"))
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


def _at_sites(modules: dict[str, nn.Module], sites: Iterable[str]) -> dict[str, str]:
    """Paths of all sites, as ``path -> site``."""
    chosen = {}
    for site in sites:
        if site not in SITES:
            near = difflib.get_close_matches(site, SITES, n=1) or sorted(SITES)
            raise ConfigError(f"unknown site {site!r}", where="sites", fix=f"did you mean {' or '.join(near)}?")
        matched = [path for path in modules if re.fullmatch(SITES[site], path) and not _OUTSIDE_BLOCKS.fullmatch(path)]
        _refuse_separate(modules, site)
        if not matched:
            logger.warning("this backbone has no site %r; nothing is adapted there", site)
        chosen.update(dict.fromkeys(matched, site))
    if sites and not chosen:
        raise TargetNotFound(
            f"this backbone has none of the sites {', '.join(sites)}",
            where="sites",
            fix="name layers with targets= (regular expressions on module paths)",
        )
    return chosen


def _refuse_separate(modules: dict[str, nn.Module], site: str) -> None:
    """Several layers that read one input would each need the same adapter; that is not folded yet, so it is refused."""
    children = defaultdict(set)
    for path in modules:
        parent, _, name = path.rpartition(".")
        children[parent].add(name)
    for parent, names in children.items():
        for separate in _SEPARATE[site]:
            if separate <= names and not _OUTSIDE_BLOCKS.fullmatch(parent):
                raise NotMergeable(
                    f"site {site!r} is read by separate layers {', '.join(sorted(separate))}, not by one",
                    where=parent,
                    fix="leave the site out with sites=, or adapt single layers with targets=",
                )


def _refuse_shared(model: nn.Module, chosen: Iterable[str]) -> None:
    """A layer or a weight that is registered in two places would change in both when the adapter folds into one."""
    modules: dict[nn.Module, list[str]] = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        modules[module].append(path)
    tensors: dict[torch.Tensor, list[str]] = defaultdict(list)
    for name, tensor in model.named_parameters(remove_duplicate=False):
        tensors[tensor].append(name)
    named = {path: module for module, paths in modules.items() for path in paths}
    for path in chosen:
        homes = modules[named[path]]
        if len(homes) > 1:
            raise NotMergeable(f"the layer is used in several places: {', '.join(homes)}", where=path)
        for tensor in named[path].parameters(recurse=False):
            if len(tensors[tensor]) > 1:
                raise NotMergeable(f"its weight is shared: {', '.join(tensors[tensor])}", where=path)


def _target(path: str, site: str, module: nn.Module) -> Target:
    layer = affine_layer(path, module)
    base = read(layer)
    dtype = torch.float64 if base.weight.dtype == torch.float64 else torch.float32
    return Target(path, site, base.in_features, base.out_features, base.bias is not None, base.weight.device, dtype)
