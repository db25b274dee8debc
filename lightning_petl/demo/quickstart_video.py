"""The video quickstart: ``python -m lightning_petl.demo.quickstart_video`` prints one table.

It makes clips of moving handwritten digits (see `moving_digits`) and fits four models on them: a linear probe on the
mean of the frames, a probe under a convolution over time, RepAdapter under the same head, and that again on clips whose
frames are shuffled. Each is tested from its files, the adapter unfolded and folded. Every number comes from files that
the ordinary commands left.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch

from lightning_petl.demo.quickstart import command, fit_and_test, free, plot_curves, results

# What each run sets beside the configuration; learning rates were chosen on the validation clips.
RUNS = {
    # At chance whatever its rate and however long it trains, so not for long.
    "mean": [*("--model.method", "LinearProbe", "--model.head", "mean"), *("--trainer.max_epochs", "6")],
    "probe": ["--model.method", "LinearProbe", "--model.optimizer.lr", "3.0e-3"],
    "adapter": ["--model.method", "RepAdapter"],
    "shuffled": [
        *("--model.method", "RepAdapter"),
        *("--data", "lightning_petl.demo.shuffled_frames.ShuffledFramesData"),
    ],
}
NAMES = {
    "mean": "probe, mean of the frames",
    "probe": "probe, convolution",
    "adapter": "RepAdapter, convolution",
    "shuffled": "the same, frames shuffled",
}


@dataclass(frozen=True)
class Row:
    """One line of the table: accuracies in 0 to 1 on the test clips, and seconds of `fit` and of the whole run."""

    run: str
    seed: int
    trainable: int
    accuracy: float
    folded_accuracy: float
    fit_seconds: float
    seconds: float


def main() -> None:
    """Runs the quickstart.

    Raises:
        PETLError: A command failed.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart_video.yaml"))
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart-video"))
    parser.add_argument("--clips", type=Path, help="a folder that `data make moving-digits` wrote; made where left out")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)  # matrices of this size gain nothing from a second thread
    out = free(options.out)
    clips = options.clips or out / "clips"
    if options.clips is None:
        command(["data", "make", "moving-digits", str(clips)])
    rows = []
    for seed in options.seeds:
        for run in options.runs:
            folder = out / run if len(options.seeds) == 1 else out / f"{run}-{seed}"
            seeds = ["--seed_everything", str(seed), "--data.seed", str(seed)]
            shared = ["--config", str(options.config), *RUNS[run], "--data.root", str(clips), *seeds]
            fit_and_test(shared, folder, predict=False)
            rows.append(row(run, seed, folder))
    show(rows)
    if len(options.seeds) == 1:
        plot_curves({NAMES[run]: out / run for run in options.runs}, out / "training_curves.png")
    print(f"\nwritten to {out}")


def row(run: str, seed: int, folder: Path) -> Row:
    """What the files of a run say."""
    fit, adapter, merged = results(folder)
    seconds = sum(each["wall_time_s"] for each in (fit, adapter, merged))
    accuracies = adapter["test/acc1"], merged["test/acc1"]
    return Row(run, seed, fit["trainable_parameters"], *accuracies, fit["wall_time_s"], seconds)


def show(rows: Sequence[Row]) -> None:
    """Prints the table, and with several seeds the means."""
    print(f"\n{'':<27}{'seed':>5}{'trainable':>11}{'accuracy':>10}{'folded':>8}{'fit, s':>8}{'all, s':>8}")
    for each in rows:
        print(
            f"{NAMES[each.run]:<27}{each.seed:>5}{each.trainable:>11,}{each.accuracy:>10.3f}"
            f"{each.folded_accuracy:>8.3f}{each.fit_seconds:>8.0f}{each.seconds:>8.0f}"
        )
    runs = list(dict.fromkeys(each.run for each in rows))
    if len(rows) > len(runs):
        means = {run: mean(each.folded_accuracy for each in rows if each.run == run) for run in runs}
        print("mean: " + ", ".join(f"{NAMES[run]} {value:.3f}" for run, value in means.items()))


if __name__ == "__main__":
    main()
