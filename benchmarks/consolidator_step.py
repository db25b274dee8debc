"""Consolidator's training step beside the reference's grouped convolutions: ``python benchmarks/consolidator_step.py``.

Bytes are those that autograd keeps for the backward pass besides parameters, each storage once.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F  # noqa: N812
from rounds import check_same, compare, compare_kept, floor, images_of, parser, plain, ready
from torch import Tensor, nn

from lightning_petl import Affine, Consolidator, adapted_layers, inject
from lightning_petl.methods.consolidator import Branch, ConsolidatorLayer

ROWS = (
    ("merged anew", "floor"),
    ("conv1d", "floor"),
    ("merged anew", "conv1d"),
    ("merged anew", "merged anew again"),
)
GOALS = {("merged anew", "floor"): 1.08}


class Conv1dLayer(ConsolidatorLayer):
    """The same map as one grouped 1-d convolution a branch over ``(batch, channels, tokens)``, dropped by itself."""

    def forward(self, x: Tensor, base: Affine) -> Tensor:
        out = base(x)
        for branch, groups in zip(self.branches, self.pattern.groups, strict=True):
            weight, bias = cast(Branch, branch).weight, cast(Branch, branch).bias
            added = F.conv1d(x.transpose(1, 2), weight.unsqueeze(-1), bias, groups=groups).transpose(1, 2)
            if self.training and self.drop_path:
                keep = 1 - self.drop_path
                added = added * (added.new_empty(len(x), 1, 1).bernoulli_(keep) / keep)
            out = out + added
        return out


def build(name: str, layer: type[ConsolidatorLayer], drop_path: float) -> nn.Module:
    model = inject(plain(name), Consolidator(drop_path=drop_path))
    for adapted in adapted_layers(model).values():
        adapted.adapter.__class__ = layer
    return ready(model)


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--drop_path", type=float, default=0.0)
    options = options_of.parse_args()
    layers = {"conv1d": Conv1dLayer, "merged anew": ConsolidatorLayer, "merged anew again": ConsolidatorLayer}
    variants = {name: build(options.backbone, layer, options.drop_path) for name, layer in layers.items()}
    images = images_of(options)
    check_same(list(variants.values()), images)
    models = {"floor": floor(options.backbone), **variants}
    compare(models, images, options, ROWS, GOALS)
    compare_kept(models, images, {"merged anew": 1.02})


if __name__ == "__main__":
    main()
