"""What the benchmarks of a training step share: the floor, the rounds in which variants take turns, and their ratios.

Variants take turns in one process, and ratios are taken per round; the A/A row, one variant against itself, is the
noise. The floor freezes everything but one bias in front of the blocks and the head. On a machine that other programs
use too, `--clock processor` with one thread (`OMP_NUM_THREADS=1`) counts this process's own seconds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import quantiles

import timm
import torch
from torch import Tensor, nn

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
Rows = Sequence[tuple[str, str]]


def parser(description: str | None, rounds: int = 9) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    return parser


def images_of(options: argparse.Namespace) -> Tensor:
    return torch.randn(options.batch, 3, 224, 224)


def plain(name: str) -> nn.Module:
    """The backbone with a head of 100 classes, the same weights every time."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=100)
    return model


def ready(model: nn.Module) -> nn.Module:
    """The model in training mode, its head set free."""
    model.get_classifier().requires_grad_(True)
    return model.train()


def floor(name: str) -> nn.Module:
    model = plain(name).requires_grad_(False)
    model.patch_embed.proj.bias.requires_grad_(True)
    return ready(model)


def step(model: nn.Module, images: Tensor, clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    model(images).logsumexp(1).mean().backward()
    seconds = clock() - start
    model.zero_grad(set_to_none=True)
    return seconds


def check_same(models: Sequence[nn.Module], images: Tensor) -> None:
    """All compute one thing, or their times could not be compared."""
    with torch.no_grad():
        first, *others = (model.eval()(images) for model in models)
        for other in others:
            torch.testing.assert_close(other, first, rtol=0, atol=1e-4)
    for model in models:
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


def compare_kept(models: Mapping[str, nn.Module], images: Tensor, goals: Mapping[str, float]) -> None:
    """Prints what each model keeps beside the floor; the numbers are exact and the same every time."""
    least = kept_bytes(models["floor"], images)
    for name, model in models.items():
        if name != "floor" and not name.endswith("again"):
            note = f"   goal: {goals[name]}" if name in goals else ""
            print(f"{name:>13} / {'floor':<19} {kept_bytes(model, images) / least:.3f}  bytes kept for backward{note}")


def compare(
    models: Mapping[str, nn.Module],
    images: Tensor,
    options: argparse.Namespace,
    rows: Rows,
    goals: Mapping[tuple[str, str], float] | None = None,
) -> None:
    """Times all models in turns, and prints the median and the middle half of each ratio."""
    order, rounds = list(models), []
    for _ in range(options.rounds + 1):
        rounds.append({name: step(models[name], images, CLOCKS[options.clock]) for name in order})
        order.append(order.pop(0))  # none is always the one behind another
    print(f"{options.backbone}, batch {options.batch}, {torch.get_num_threads()} threads, {options.clock} seconds")
    for over, under in rows:
        low, middle, high = quantiles((times[over] / times[under] for times in rounds[1:]), n=4)
        goal = (goals or {}).get((over, under))
        note = f"   goal: {goal}" if goal else "   A/A: the noise" if "again" in under else ""
        print(f"{over:>13} / {under:<19} {middle:.3f}  (half of the rounds: {low:.3f} to {high:.3f}){note}")
