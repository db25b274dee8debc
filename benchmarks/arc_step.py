"""ARC's training step beside the reference's formulation: ``python benchmarks/arc_step.py``."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from rounds import check_same, compare, compare_kept, floor, images_of, parser, plain, ready
from torch import Tensor, nn

from lightning_petl import ARC, Affine, adapted_layers, inject
from lightning_petl.methods.arc import ARCLayer

ROWS = (
    ("thin products", "floor"),
    ("reference", "floor"),
    ("thin products", "reference"),
    ("thin products", "thin products again"),
)
GOALS = {("thin products", "reference"): 1.0}


class MatmulLayer(ARCLayer):
    """The same map in the reference's operations: its rescaling is a row, and bias and skip are added one by one."""

    def forward(self, x: Tensor, base: Affine) -> Tensor:
        projection = self.projection
        hidden = torch.matmul(x, projection * self.rescale.unsqueeze(0))
        hidden = F.dropout(hidden, self.dropout, self.training)
        return base(torch.matmul(hidden, projection.t()) + self.bias + x)


def build(name: str, layer: type[ARCLayer]) -> nn.Module:
    model = inject(plain(name), ARC())
    for adapted in adapted_layers(model).values():
        adapted.adapter.__class__ = layer
    return ready(model)


def main() -> None:
    options = parser(__doc__).parse_args()
    layers = {"reference": MatmulLayer, "thin products": ARCLayer, "thin products again": ARCLayer}
    variants = {name: build(options.backbone, layer) for name, layer in layers.items()}
    images = images_of(options)
    check_same(list(variants.values()), images)
    models = {"floor": floor(options.backbone), **variants}
    compare(models, images, options, ROWS, GOALS)
    compare_kept(models, images, {"thin products": 1.04})


if __name__ == "__main__":
    main()
