"""LoRA's training step beside PEFT's: ``python benchmarks/lora_step.py``.

All variants take turns in one process, and ratios are taken per round; the A/A row, one variant against itself, is the
noise. The floor is that of ``repadapter_step.py``: everything frozen but one bias in front of the blocks and the head.
Before anything is timed, both are seen to compute the same loss and the same gradients.
"""

from __future__ import annotations

import argparse
from statistics import median

import timm
import torch
from peft import LoraConfig, get_peft_model
from repadapter_step import build as build_floor
from repadapter_step import step
from torch import Tensor, nn

from lightning_petl import LoRA, adapted_layers, inject

RANK, ALPHA = 8, 16


def build(name: str, variant: str) -> nn.Module:
    if variant == "floor":
        return build_floor(name, variant)
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=100)
    if variant == "peft":
        model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["qkv"]))
    else:
        inject(model, LoRA(RANK, ALPHA))
    model.get_classifier().requires_grad_(True)
    return model.train()


def pairs(model: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Both weights of each layer's pair, by its path."""
    if adapted_layers(model):
        found = adapted_layers(model)
        return {path: (layer.adapter.down.weight, layer.adapter.up.weight) for path, layer in found.items()}
    layers = {path: module for path, module in model.named_modules() if hasattr(module, "lora_A")}
    prefix = "base_model.model."
    return {
        path.removeprefix(prefix): (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        for path, layer in layers.items()
    }


def check_same(ours: nn.Module, theirs: nn.Module, images: Tensor) -> None:
    """Gives both the same pairs, and compares what a step computes."""
    generator = torch.Generator().manual_seed(0)
    mine, other = pairs(ours), pairs(theirs)
    assert mine.keys() == other.keys()
    with torch.no_grad():
        for path, weights in mine.items():
            for first, second in zip(weights, other[path], strict=True):
                first.copy_(0.05 * torch.randn(first.shape, generator=generator))
                second.copy_(first)
    losses = [model(images).logsumexp(1).mean() for model in (ours, theirs)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses)
    for path, weights in mine.items():
        for first, second in zip(weights, other[path], strict=True):
            torch.testing.assert_close(first.grad, second.grad, rtol=1e-3, atol=1e-6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    variants = ("floor", "peft", "ours", "ours again")
    models = {variant: build(options.backbone, variant) for variant in variants}
    images = torch.randn(options.batch, 3, 224, 224)
    check_same(models["ours"], models["peft"], images[:2])
    rounds = [{name: step(model, images) for name, model in models.items()} for _ in range(options.rounds + 1)][1:]
    for over, under in (("ours", "floor"), ("peft", "floor"), ("ours", "peft"), ("ours", "ours again")):
        ratio = median(times[over] / times[under] for times in rounds)
        print(f"{over:>5} / {under:<12} {ratio:.3f}{'   (A/A: the noise)' if 'again' in under else ''}")


if __name__ == "__main__":
    main()
