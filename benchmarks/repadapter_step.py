"""RepAdapter's training step beside the reference's conv1d formulation: ``make bench``.

All variants take turns in one process, and ratios are taken per round; the A/A row, one variant against itself, is the
noise. The floor freezes everything but one bias in front of the blocks and the head. On a machine that other programs
use too, `--clock processor` with one thread (`OMP_NUM_THREADS=1`) counts this process's own seconds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import quantiles

import timm
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_petl import Affine, RepAdapter, adapted_layers, inject
from lightning_petl.methods.repadapter import RepAdapterLayer


def conv1d_forward(self: RepAdapterLayer, x: Tensor, base: Affine) -> Tensor:
    """The same map in the reference's operations: 1-d convolutions and the sum over ``(batch, channels, tokens)``."""
    channels_first = x.transpose(1, 2)
    hidden = F.conv1d(channels_first, self.down.weight.unsqueeze(-1), self.down.bias)
    hidden = F.dropout(hidden, self.dropout, self.training)
    branch = F.conv1d(hidden, self.up.weight.unsqueeze(-1), self.up.bias, groups=self.up.groups)
    return base((self.scale * branch + channels_first).transpose(1, 2).contiguous())


class Conv1dLayer(RepAdapterLayer):
    forward = conv1d_forward


def build(name: str, variant: str) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=100)
    if variant == "floor":
        model.requires_grad_(False)
        model.patch_embed.proj.bias.requires_grad_(True)
    else:
        inject(model, RepAdapter())
        for layer in adapted_layers(model).values():
            layer.adapter.__class__ = Conv1dLayer if variant == "conv1d" else RepAdapterLayer
            nn.init.normal_(layer.adapter.up.weight, std=0.1)  # zero at the start, where any two would agree
    model.get_classifier().requires_grad_(True)
    return model.train()


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
GOALS = {("two linears", "floor"): 1.07, ("two linears", "conv1d"): 0.87}


def step(model: nn.Module, images: Tensor, clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    model(images).logsumexp(1).mean().backward()
    seconds = clock() - start
    model.zero_grad(set_to_none=True)
    return seconds


def check(models: dict[str, nn.Module], images: Tensor) -> None:
    """All formulations compute one thing, or their times could not be compared."""
    with torch.no_grad():
        expected = models["conv1d"].eval()(images)
        torch.testing.assert_close(models["two linears"].eval()(images), expected, rtol=0, atol=1e-4)
    for model in models.values():
        model.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    variants = ["floor", "conv1d", "two linears", "two linears again"]
    models = {variant: build(options.backbone, variant) for variant in variants}
    images = torch.randn(options.batch, 3, 224, 224)
    check(models, images)
    rounds = []
    for _ in range(options.rounds + 1):
        rounds.append({name: step(models[name], images, CLOCKS[options.clock]) for name in variants})
        variants.append(variants.pop(0))  # none is always the one behind another
    print(f"{options.backbone}, batch {options.batch}, {torch.get_num_threads()} threads, {options.clock} seconds")
    for over, under in (
        ("two linears", "floor"),
        ("conv1d", "floor"),
        ("two linears", "conv1d"),
        ("two linears", "two linears again"),
    ):
        low, middle, high = quantiles((times[over] / times[under] for times in rounds[1:]), n=4)
        goal = GOALS.get((over, under))
        note = f"   goal: {goal}" if goal else "   A/A: the noise" if "again" in under else ""
        print(f"{over:>12} / {under:<18} {middle:.3f}  (half of the rounds: {low:.3f} to {high:.3f}){note}")


if __name__ == "__main__":
    main()
