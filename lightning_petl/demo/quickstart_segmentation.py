"""The segmentation quickstart: ``python -m lightning_petl.demo.quickstart_segmentation`` prints one table.

It makes scenes of handwritten digits over photographs (see `digit_scenes`), fits a linear probe, RepAdapter and full
fine-tuning, folds, and tests each from its files. Every number comes from files that the ordinary commands left.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch

from lightning_petl.demo.quickstart import command, fit_and_test, free, plot_curves, results

# Each method with the learning rate and the epochs that were best for it on the validation scenes.
METHODS = {
    method: ["--model.optimizer.lr", rate, "--trainer.max_epochs", epochs]
    for method, (rate, epochs) in {
        "LinearProbe": ("0.01", "20"),
        "RepAdapter": ("0.01", "20"),
        "FullFineTuning": ("0.001", "20"),
    }.items()
}


@dataclass(frozen=True)
class Row:
    """One line of the table: IoU in 0 to 1, of the scenes of the test split, and seconds that `fit` took."""

    method: str
    seed: int
    trainable: int
    adapter_bytes: int
    miou: float
    folded_miou: float
    digits: float
    photograph: float
    seconds: float


def main() -> None:
    """Runs the quickstart.

    Raises:
        PETLError: A command failed.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart_segmentation.yaml"))
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart-segmentation"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)  # matrices of this size gain nothing from a second thread
    out = free(options.out)
    scenes = out / "scenes"
    command(["data", "make", "digit-scenes", str(scenes)])
    rows = []
    for seed in options.seeds:
        for method in options.methods:
            folder = out / method if len(options.seeds) == 1 else out / f"{method}-{seed}"
            shared = ["--config", str(options.config), "--data.root", str(scenes), "--model.method", method]
            seeds = ["--seed_everything", str(seed), "--data.seed", str(seed)]
            fit_and_test([*shared, *METHODS[method]], folder, seeds)
            rows.append(row(method, seed, folder))
    show(rows)
    first = {each.method: out / each.method for each in rows} if len(options.seeds) == 1 else {}
    if first:
        plot_curves(first, out / "training_curves.png", ("val/miou", "train/loss_epoch"))
    print(f"\nwritten to {out}: the scenes, and for each method a run folder with pictures in overlays and test_merged")


def row(method: str, seed: int, folder: Path) -> Row:
    """What the files of a run say."""
    fit, adapter, merged = results(folder)
    with (folder / "test_merged" / "class_scores.csv").open(newline="") as file:
        photograph, *digits = (float(line["iou"] or 0) for line in csv.DictReader(file))
    size = (folder / "adapter.safetensors").stat().st_size
    scores = (adapter["test/miou"], merged["test/miou"], mean(digits), photograph)
    return Row(method, seed, fit["trainable_parameters"], size, *scores, fit["wall_time_s"])


def show(rows: Sequence[Row]) -> None:
    """Prints the table, and with several seeds the means."""
    print(
        f"\n{'':<15}{'seed':>5}{'trainable':>11}{'adapter file':>14}{'mIoU':>8}{'folded':>8}"
        f"{'digits':>8}{'photo':>7}{'fit, s':>8}"
    )
    for each in rows:
        print(
            f"{each.method:<15}{each.seed:>5}{each.trainable:>11,}{each.adapter_bytes:>12,} B{100 * each.miou:>8.2f}"
            f"{100 * each.folded_miou:>8.2f}{100 * each.digits:>8.2f}{100 * each.photograph:>7.2f}{each.seconds:>8.0f}"
        )
    means = {
        method: mean(each.folded_miou for each in rows if each.method == method)
        for method in dict.fromkeys(each.method for each in rows)
    }
    if len(rows) > len(means):
        print("mean: " + ", ".join(f"{method} {100 * value:.2f}" for method, value in means.items()))
    if means.keys() >= METHODS.keys():
        probe, adapter, full = (means[method] for method in METHODS)
        print(
            f"RepAdapter closes {(adapter - probe) / (full - probe):.0%} of the way from the probe to full fine-tuning"
        )


if __name__ == "__main__":
    main()
