"""ARC's training step beside the reference's formulation: ``python benchmarks/arc_step.py``.

All variants take turns in one process, and ratios are taken per round; the A/A row, one variant against itself, is the
noise. The floor is that of ``repadapter_step.py``: everything frozen but one bias in front of the blocks and the head.
"""

from __future__ import annotations

import argparse
from statistics import median

import timm
import torch
import torch.nn.functional as F  # noqa: N812
from repadapter_step import build as build_floor
from repadapter_step import step
from torch import Tensor, nn

from lightning_petl import ARC, Affine, adapted_layers, inject
from lightning_petl.methods.arc import ARCLayer


class MatmulLayer(ARCLayer):
    """The same map in the reference's operations: its rescaling is a row, and bias and skip are added one by one."""

    def forward(self, x: Tensor, base: Affine) -> Tensor:
        projection = self.projection
        hidden = torch.matmul(x, projection * self.rescale.unsqueeze(0))
        hidden = F.dropout(hidden, self.dropout, self.training)
        return base(torch.matmul(hidden, projection.t()) + self.bias + x)


def build(name: str, variant: str) -> nn.Module:
    if variant == "floor":
        return build_floor(name, variant)
    torch.manual_seed(0)
    model = inject(timm.create_model(name, num_classes=100), ARC())
    for layer in adapted_layers(model).values():
        layer.adapter.__class__ = MatmulLayer if variant == "reference" else ARCLayer
    model.get_classifier().requires_grad_(True)
    return model.train()


def check(models: dict[str, nn.Module], images: Tensor) -> None:
    """All three compute one thing, or their times could not be compared."""
    with torch.no_grad():
        expected = models["reference"].eval()(images)
        for variant in ("two linears", "two linears again"):
            torch.testing.assert_close(models[variant].eval()(images), expected, rtol=0, atol=1e-4)
    for model in models.values():
        model.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    variants = ("floor", "reference", "two linears", "two linears again")
    models = {variant: build(options.backbone, variant) for variant in variants}
    images = torch.randn(options.batch, 3, 224, 224)
    check(models, images)
    rounds = [{name: step(model, images) for name, model in models.items()} for _ in range(options.rounds + 1)][1:]
    for over, under in (
        ("two linears", "floor"),
        ("reference", "floor"),
        ("two linears", "reference"),
        ("two linears", "two linears again"),
    ):
        ratio = median(times[over] / times[under] for times in rounds)
        print(f"{over:>12} / {under:<18} {ratio:.3f}{'   (A/A: the noise)' if 'again' in under else ''}")


if __name__ == "__main__":
    main()
