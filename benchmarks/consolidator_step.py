"""Consolidator's training step beside the reference's grouped convolutions: ``python benchmarks/consolidator_step.py``.

All variants take turns in one process, and ratios are taken per round; the A/A row, one variant against itself, is the
noise. The floor is that of ``repadapter_step.py``: everything frozen but one bias in front of the blocks and the head.
Bytes are those that autograd keeps for the backward pass besides parameters, each storage once.
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import cast

import timm
import torch
import torch.nn.functional as F  # noqa: N812
from repadapter_step import build as build_floor
from repadapter_step import step
from torch import Tensor, nn

from lightning_petl import Affine, Consolidator, adapted_layers, inject
from lightning_petl.methods.consolidator import Branch, ConsolidatorLayer


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


def build(name: str, variant: str, drop_path: float) -> nn.Module:
    if variant == "floor":
        return build_floor(name, variant)
    torch.manual_seed(0)
    model = inject(timm.create_model(name, num_classes=100), Consolidator(drop_path=drop_path))
    for layer in adapted_layers(model).values():
        layer.adapter.__class__ = Conv1dLayer if variant == "conv1d" else ConsolidatorLayer
    model.get_classifier().requires_grad_(True)
    return model.train()


def check(models: dict[str, nn.Module], images: Tensor) -> None:
    """Both formulations compute one thing, or their times could not be compared."""
    with torch.no_grad():
        expected = models["conv1d"].eval()(images)
        torch.testing.assert_close(models["merged anew"].eval()(images), expected, rtol=0, atol=1e-4)
    for model in models.values():
        model.train()


def kept_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass, without parameters and buffers; each storage counts once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(images).logsumexp(1).mean()
    loss.backward()
    model.zero_grad(set_to_none=True)
    return sum(kept.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--drop_path", type=float, default=0.0)
    options = parser.parse_args()
    variants = ("floor", "conv1d", "merged anew", "merged anew again")
    models = {variant: build(options.backbone, variant, options.drop_path) for variant in variants}
    images = torch.randn(options.batch, 3, 224, 224)
    check(models, images)
    rounds = [{name: step(model, images) for name, model in models.items()} for _ in range(options.rounds + 1)][1:]
    kept = {name: kept_bytes(model, images) for name, model in models.items()}
    for over, under in (
        ("merged anew", "floor"),
        ("conv1d", "floor"),
        ("merged anew", "conv1d"),
        ("merged anew", "merged anew again"),
    ):
        ratio = median(times[over] / times[under] for times in rounds)
        note = "   (A/A: the noise)" if "again" in under else ""
        print(f"{over:>12} / {under:<18} time {ratio:.3f}   bytes kept {kept[over] / kept[under]:.3f}{note}")


if __name__ == "__main__":
    main()
