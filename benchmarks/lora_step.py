"""LoRA's training step beside PEFT's: ``python benchmarks/lora_step.py``.

Before anything is timed, both are seen to compute the same loss and the same gradients.
"""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from rounds import compare, compare_kept, floor, images_of, parser, plain, ready
from torch import Tensor, nn

from lightning_petl import LoRA, adapted_layers, inject

RANK, ALPHA = 8, 16
ROWS = (("ours", "floor"), ("peft", "floor"), ("ours", "peft"), ("ours", "ours again"))
GOALS = {("ours", "peft"): 1.0}


def build(name: str, variant: str) -> nn.Module:
    if variant == "peft":
        return ready(get_peft_model(plain(name), LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["qkv"])))
    return ready(inject(plain(name), LoRA(RANK, ALPHA)))


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


def check_pairs(ours: nn.Module, theirs: nn.Module, images: Tensor) -> None:
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
    options = parser(__doc__, rounds=15).parse_args()
    variants = {name: build(options.backbone, name) for name in ("peft", "ours", "ours again")}
    images = images_of(options)
    check_pairs(variants["ours"], variants["peft"], images[:2])
    models = {"floor": floor(options.backbone), **variants}
    compare(models, images, options, ROWS, GOALS)
    compare_kept(models, images, {})


if __name__ == "__main__":
    main()
