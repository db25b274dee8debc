"""Consolidator: Hao et al., Consolidator: Mergeable Adapter with Grouped Connections, arXiv 2305.00603 (ICLR 2023)."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from lightning_petl.adapter import JSON, Adapter, Method, Separate, Target
from lightning_petl.affine import Affine
from lightning_petl.errors import ConfigError, NotMergeable
from lightning_petl.grouped import Pattern, draw_parts, merged_anew

INIT = 1e-3
"""Branches start uniform in ``[-INIT, INIT]``, as in the reference: near the identity, and not the identity."""

BLOCK_LAYERS = (
    # Below a numbered block: timm's names, with q, k and v fused or not, the MLPs of torchvision and OpenCLIP, and what
    # transformers calls them. An attention pool, a mixer's mlp_tokens, Swin's reduction and cpb_mlp are not among them.
    r"(?:.*[._])?\d+\.(?:.*\.)?(?:(?:attn|self_attn|attention(?:\.attention)?)\."
    r"(?:qkv|q|k|v|kv|q_proj|k_proj|v_proj|query|key|value|proj|o_proj|out_proj)"
    r"|(?:mlp|mlp_channels|ffn)\.(?:fc1|fc1_g|fc1_x|fc2|w12|w1|w2|w3|up_proj|gate_proj|down_proj|0|3|c_fc|c_proj)"
    r"|(?:intermediate|output)\.dense)"
)
"""Full match on the fully connected layers of every block."""

_BLOCK = re.compile(r"((?:.*\.)?(?:\w*_)?\d+)\.")


class Branch(nn.Module):
    """One grouped connection: a linear layer whose weight is block diagonal, stored by its blocks.

    Attributes:
        weight: ``(out, in / groups)``.
        bias: ``(out,)``, or None.
    """

    def __init__(self, target: Target, groups: int, bias: bool) -> None:
        super().__init__()
        rows, columns = target.out_features, target.in_features // groups
        self.weight = nn.Parameter(torch.empty(rows, columns, device=target.device, dtype=target.dtype))
        self.bias = nn.Parameter(torch.empty(rows, device=target.device, dtype=target.dtype)) if bias else None
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -INIT, INIT)


class ConsolidatorLayer(Adapter):
    """Grouped connections beside one layer: ``y = W x + b + Σ_k DropPath(C_k(S_k(x)))``.

    ``S`` is the optional shuffle of input channels, ``C`` the grouped layer. Each branch is dropped for a sample as a
    whole, its bias too, and independently of the others; the frozen layer's own output never is. A sample is an index
    of the input's first axis, which for window attention is a window.

    Attributes:
        branches: One `Branch` per group count.
        base_bias: ``(out,)``, what training added to the layer's own bias; None where that stays frozen.
    """

    def __init__(
        self, target: Target, groups: tuple[int, ...], shuffle: bool, drop_path: float, bias: bool, base_bias: bool
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.pattern = Pattern(target.in_features, target.out_features, groups, shuffle, target.device)
        self.branches = nn.ModuleList([Branch(target, count, bias) for count in groups])
        zeros = torch.zeros(target.out_features, device=target.device, dtype=target.dtype) if base_bias else None
        self.base_bias = None if zeros is None else nn.Parameter(zeros)

    def _weights(self) -> list[Tensor]:
        return [cast(Branch, branch).weight for branch in self.branches]

    def _bias(self, factors: Sequence[float], base: Tensor | None = None) -> Tensor | None:
        """The biases of all branches times their factors, with the layer's own, ``(out,)``."""
        biases = [base, self.base_bias, *(cast(Branch, branch).bias for branch in self.branches)]
        total: Tensor | None = None
        for bias, factor in zip(biases, (1.0, 1.0, *factors), strict=True):
            if bias is not None:
                scaled = bias if factor == 1 else bias * factor
                total = scaled if total is None else total + scaled
        return total

    def forward(self, x: Tensor, base: Affine) -> Tensor:
        """One matrix product with the merged weight; with drop-path, one for each way in which samples drop branches.

        In training, the dense weight's gradient is never formed, and no activation is kept that the frozen backbone
        does not keep, if ``x`` comes straight out of a LayerNorm or a GELU.
        """
        if x.dim() == 1:
            return self.forward(x.unsqueeze(0), base).squeeze(0)
        drop = self.drop_path if self.training else 0.0
        parts = draw_parts(x.shape[0], len(self.branches), drop, x.device)
        biases = [self._bias(part.factors, base.bias) for part in parts]
        return merged_anew(x, base.weight, self.pattern, parts, biases, self._weights())

    def merged(self, base: Affine) -> Affine:
        """``W + Σ_k ΔW_k`` and ``b + Σ_k β_k``; ``ΔW_k`` is block diagonal, its columns put back in order."""
        return _plus(base, self.pattern, *self._summed())

    def _summed(self) -> tuple[Tensor, Tensor | None]:
        every = (1.0,) * len(self.branches)
        return self.pattern.sum(self._weights(), every), self._bias(every)

    def consolidated(self) -> Consolidated:
        """All branches added up, on the entries that any of them reaches; equal, and never larger."""
        return Consolidated(copy.deepcopy(self.pattern), *self._summed())


class Consolidated(Adapter):
    """What is stored: one sparse matrix and one bias.

    Attributes:
        values: The sum of the branches on the union of their patterns, row by row: ``(entries,)``.
        bias: ``(out,)``, or None where nothing trained a bias.
    """

    def __init__(self, pattern: Pattern, values: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.pattern = pattern
        # Copies: the sum over a single branch is that branch's own tensor.
        self.values = nn.Parameter(values.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def merged(self, base: Affine) -> Affine:
        """``W`` plus the sparse matrix, ``b`` plus the bias."""
        return _plus(base, self.pattern, self.values, self.bias)


def _plus(base: Affine, pattern: Pattern, values: Tensor, bias: Tensor | None) -> Affine:
    dtype = torch.promote_types(base.weight.dtype, values.dtype)
    added = base.bias if bias is None else bias if base.bias is None else base.bias + bias
    return Affine(pattern.written(base.weight, pattern.reached(base.weight, values, dtype)), added)


class Consolidator(Method):
    """Consolidator (arXiv 2305.00603): grouped connections beside every fully connected layer, added up for storage.

    Not the identity at initialisation: weights and biases of the branches start uniform in ``[-0.001, 0.001]``.

    Args:
        groups: Group counts, one branch each; the paper's ViT-B has ``(384,)``. None for half the width of each layer,
            where a layer's width is the smaller of its in and out features.
        channel_shuffle: Whether a branch reads the input channels shuffled.
        drop_path: Probability of dropping a branch for a sample in training, 0 to 0.8 in the paper by data set.
        bias: Whether branches have biases.
        train_norms_and_biases: Whether to train the norms of the blocks, the final norm, and the biases of the blocks
            too, as the official recipe does. An adapted layer's own bias is trained as a change that starts at zero,
            ``base_bias``, beside that of the branches; this equals training it in place under an optimizer without
            weight decay on biases, as the recipe's is.
        targets: Regular expressions on module paths; the fully connected layers of every block where left out.
    """

    variants: ClassVar[Mapping[str, Mapping[str, JSON]]] = {
        "Consolidator g=384": {"groups": [384]},
        "Consolidator as trained": {"train_norms_and_biases": True},
    }
    separate: ClassVar[Separate] = "each"

    def __init__(
        self,
        groups: Sequence[int] | None = None,
        channel_shuffle: bool = False,
        drop_path: float = 0.0,
        bias: bool = True,
        train_norms_and_biases: bool = False,
        targets: Sequence[str] | None = None,
    ) -> None:
        super().__init__(targets=(BLOCK_LAYERS,) if targets is None else targets)
        if not 0 <= drop_path < 1:
            raise ConfigError(f"Consolidator has drop_path={drop_path}", where="drop_path", fix="give one in [0, 1)")
        self.groups = None if groups is None else _counts(groups)
        self.channel_shuffle, self.drop_path, self.bias = channel_shuffle, drop_path, bias
        self.train_norms_and_biases = train_norms_and_biases

    def build(self, target: Target, shared: nn.Module | None = None) -> ConsolidatorLayer:
        """Creates the branches of one layer.

        Raises:
            NotMergeable: A group count does not divide both widths of the layer.
        """
        width = min(target.in_features, target.out_features)
        groups = (max(1, width // 2),) if self.groups is None else self.groups
        for count in groups:
            inputs, outputs = target.in_features, target.out_features
            if inputs % count or outputs % count:
                raise NotMergeable(
                    f"{count} groups do not divide both {inputs} input and {outputs} output features",
                    where=target.path,
                    fix="choose groups that divide both widths of every adapted layer, or other layers with targets=",
                )
        base_bias = self.train_norms_and_biases and target.has_bias
        return ConsolidatorLayer(target, groups, self.channel_shuffle, self.drop_path, self.bias, base_bias)

    def trained(self, model: nn.Module) -> Iterable[str]:
        """With ``train_norms_and_biases``: norms in blocks and after them, and biases in blocks of unadapted layers."""
        if not self.train_norms_and_biases:
            return ()
        paths = [path for path, _ in model.named_modules()]
        adapted = {path for path in paths if any(re.fullmatch(pattern, path) for pattern in self.targets or ())}
        blocks = tuple({f"{match[1]}." for path in adapted if (match := _BLOCK.match(path))})
        last = max((place for place, path in enumerate(paths) if path.startswith(blocks)), default=len(paths))
        names: list[str] = []
        for place, (path, module) in enumerate(model.named_modules()):
            inside, after = path.startswith(blocks), place > last and "attn_pool" not in path
            of_norm = (inside or after) and "norm" in type(module).__name__.lower()
            for name, parameter in module.named_parameters(path, recurse=False):
                if parameter.dim() == 1 and path not in adapted and (of_norm or (inside and name.endswith("bias"))):
                    names.append(name)
        return names


def _counts(groups: Sequence[int]) -> tuple[int, ...]:
    """Group counts as a tuple of positive whole numbers."""
    whole = not isinstance(groups, int | str) and all(type(count) is int and count > 0 for count in groups)
    if not whole or not groups:
        raise ConfigError(
            f"Consolidator has groups={groups!r}", where="groups", fix="give a list of positive numbers, as in [384]"
        )
    return tuple(groups)
