"""RepAdapter's training step beside the reference's conv1d formulation: ``python benchmarks/repadapter_step.py``."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from rounds import check_same, compare, compare_kept, floor, images_of, parser, plain, ready
from torch import Tensor, nn

from lightning_petl import Affine, RepAdapter, adapted_layers, inject
from lightning_petl.methods.repadapter import RepAdapterLayer

ROWS = (
    ("thin products", "floor"),
    ("conv1d", "floor"),
    ("thin products", "conv1d"),
    ("thin products", "thin products again"),
)
GOALS = {("thin products", "floor"): 1.07, ("thin products", "conv1d"): 0.87}


class Conv1dLayer(RepAdapterLayer):
    """The same map in the reference's operations: 1-d convolutions and the sum over ``(batch, channels, tokens)``."""

    def forward(self, x: Tensor, base: Affine) -> Tensor:
        channels_first = x.transpose(1, 2)
        hidden = F.conv1d(channels_first, self.down.weight.unsqueeze(-1), self.down.bias)
        hidden = F.dropout(hidden, self.dropout, self.training)
        branch = F.conv1d(hidden, self.up.weight.unsqueeze(-1), self.up.bias, groups=self.up.groups)
        return base((self.scale * branch + channels_first).transpose(1, 2).contiguous())


def build(name: str, layer: type[RepAdapterLayer]) -> nn.Module:
    model = inject(plain(name), RepAdapter())
    for adapted in adapted_layers(model).values():
        adapted.adapter.__class__ = layer
        nn.init.normal_(adapted.adapter.up.weight, std=0.1)  # zero at the start, where any two would agree
    return ready(model)


def main() -> None:
    options = parser(__doc__).parse_args()
    layers = {"conv1d": Conv1dLayer, "thin products": RepAdapterLayer, "thin products again": RepAdapterLayer}
    variants = {name: build(options.backbone, layer) for name, layer in layers.items()}
    images = images_of(options)
    check_same(list(variants.values()), images)
    models = {"floor": floor(options.backbone), **variants}
    compare(models, images, options, ROWS, GOALS)
    compare_kept(models, images, {"thin products": 1.02})


if __name__ == "__main__":
    main()
