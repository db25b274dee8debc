"""The quickstart: ``python -m lightning_petl.demo.quickstart`` adapts, folds, tests, and prints one table.

Every number in the table comes from files that the ordinary commands ``fit`` and ``test`` left in their run folders.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import torch
from torch import Tensor, nn

from lightning_petl import cli
from lightning_petl.backbones import create
from lightning_petl.demo.pretrain import BACKBONE, BACKBONE_ARGS
from lightning_petl.errors import PETLError
from lightning_petl.store import load_adapter, load_merged

# Each method with the learning rate and the epochs that were best for it on the validation digits.
METHODS = {
    method: ["--model.optimizer.lr", rate, "--trainer.max_epochs", epochs]
    for method, (rate, epochs) in {
        "LinearProbe": ("0.1", "60"),
        "BitFit": ("0.03", "30"),
        "SSF": ("0.02", "30"),
        "LoRA": ("0.02", "30"),
        "RepAdapter": ("0.02", "30"),
        "ARC": ("0.02", "30"),
        "Consolidator": ("0.03", "30"),
        "FullFineTuning": ("0.001", "30"),
    }.items()
}
QUICK = ("LinearProbe", "RepAdapter")
WEIGHTS = "lightning_petl:demo/vit_digits.safetensors"


@dataclass(frozen=True)
class Row:
    """One line of the table: accuracies in 0 to 1, speed in images a second on this machine."""

    method: str
    trainable: int
    adapter_bytes: int
    accuracy: float
    folded_accuracy: float
    speed: float
    folded_speed: float


def main() -> None:
    """Runs the quickstart.

    Raises:
        PETLError: A command failed.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart.yaml"))
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--all", action="store_true", help="fit every built-in method, not two")
    options = parser.parse_args()
    # Matrices of this size gain nothing from a second thread, and wait for it where another program holds the core.
    torch.set_num_threads(1)
    out = free(options.out)
    folders = {method: out / method for method in (METHODS if options.all else QUICK)}
    for method, folder in folders.items():
        fit_and_test(["--config", str(options.config), "--model.method", method, *METHODS[method]], folder)
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    models = {method: _models(folder) for method, folder in folders.items()}
    plain = _backbone(True).eval()
    speeds = _speeds([plain, *(model for pair in models.values() for model in pair)], images)
    rows = [
        _row(method, folder, *speeds[1 + 2 * index : 3 + 2 * index])
        for index, (method, folder) in enumerate(folders.items())
    ]
    _print(rows, speeds[0], sum(parameter.numel() for parameter in plain.parameters()))
    plot_curves(folders, out / "training_curves.png")
    _plot_confusion(folders["RepAdapter"], out / "confusion_matrix.png")
    print(f"\nwritten to {out}: training_curves.png, confusion_matrix.png, and a run folder for each method")


def free(out: Path) -> Path:
    """The folder itself, or one beside it where it holds a run already."""
    number = 1
    free = out
    while free.exists():
        number += 1
        free = out.with_name(f"{out.name}_{number}")
    return free


def fit_and_test(shared: Sequence[str], folder: Path, further: Sequence[str] = (), predict: bool = True) -> None:
    """Fits one model, then tests its adapter file and its merged file, and predicts with the merged one.

    Args:
        shared: Options of all commands.
        folder: Of the run; the other commands write below it.
        further: Options of fit alone.
        predict: Whether to predict.
    """
    command(["fit", *shared, *further, "--trainer.default_root_dir", str(folder)])
    commands = [
        ("test", "adapter", "test_adapter"),
        ("test", "merged", "test_merged"),
        ("predict", "merged", "predict"),
    ]
    for name, kind, out in commands if predict else commands[:2]:
        weights = ["--model.weights", str(folder / f"{kind}.safetensors")]
        command([name, *shared, *weights, "--trainer.default_root_dir", str(folder / out)])


def results(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What fit, the test of the adapter file and the test of the merged file left in ``results.json``."""
    fit, adapter, merged = (
        json.loads((folder / name / "results.json").read_text()) for name in ("", "test_adapter", "test_merged")
    )
    return fit, adapter, merged


def command(arguments: list[str]) -> None:
    """Runs one command of the package in this process, and shows it.

    Raises:
        PETLError: It failed.
    """
    print(f"\n$ lightning-petl {' '.join(arguments)}", flush=True)
    if cli.run(arguments):
        raise PETLError("the command above failed", where=arguments[0])


def _backbone(pretrained: bool) -> nn.Module:
    arguments = {key: value for key, value in BACKBONE_ARGS.items() if key != "num_classes"}
    return create(BACKBONE, arguments, BACKBONE_ARGS["num_classes"], WEIGHTS if pretrained else False)


def _models(folder: Path) -> tuple[nn.Module, nn.Module]:
    """The adapted and the folded model of a run, from its files."""
    adapted = load_adapter(_backbone(True), folder / "adapter.safetensors").eval()
    folded = _backbone(False)
    load_merged(folded, folder / "merged.safetensors")
    return adapted, folded.eval()


def _speeds(models: list[nn.Module], images: Tensor, rounds: int = 20) -> list[float]:
    """Images a second of each model: median over rounds in which the models take turns, since machines are noisy."""
    seconds: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for round_ in range(rounds + 2):
            for model, times in zip(models, seconds, strict=True):
                start = time.perf_counter()
                model(images)
                if round_ >= 2:  # the first rounds warm caches up
                    times.append(time.perf_counter() - start)
    return [len(images) / median(times) for times in seconds]


def _row(method: str, folder: Path, speed: float, folded_speed: float) -> Row:
    fit, adapter, merged = results(folder)
    size = (folder / "adapter.safetensors").stat().st_size
    accuracies = adapter["test/acc1"], merged["test/acc1"]
    return Row(method, fit["trainable_parameters"], size, *accuracies, speed, folded_speed)


def _print(rows: list[Row], plain_speed: float, parameters: int) -> None:
    print(f"\n{'':<14}{'trainable':>11}{'adapter file':>14}{'accuracy':>10}{'folded':>8}{'images/s':>10}{'folded':>9}")
    for row in rows:
        print(
            f"{row.method:<14}{row.trainable:>11,}{row.adapter_bytes:>12,} B{row.accuracy:>10.4f}"
            f"{row.folded_accuracy:>8.4f}{row.speed:>10.0f}{row.folded_speed:>9.0f}"
        )
    print(f"{'plain backbone':<14}{'of ' + format(parameters, ','):>11}{'':>32}{plain_speed:>10.0f}{plain_speed:>9.0f}")


def plot_curves(
    folders: dict[str, Path], out: Path, metrics: tuple[str, str] = ("val/acc1", "train/loss_epoch")
) -> None:
    """Two logged metrics of each method, by epoch: how well it does, and the training loss."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for axis, metric in zip(axes, metrics, strict=True):
        for method, folder in folders.items():
            with (folder / "metrics.csv").open(newline="") as file:
                points = [(int(row["epoch"]), float(row[metric])) for row in csv.DictReader(file) if row.get(metric)]
            axis.plot(*zip(*points, strict=True), label=method)
        axis.set(xlabel="epoch", title=metric.removesuffix("_epoch"))
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(out, dpi=120)
    plt.close(figure)


def _plot_confusion(folder: Path, out: Path) -> None:
    """How often each digit of the test split was taken for each."""
    from matplotlib import pyplot as plt
    from sklearn.metrics import ConfusionMatrixDisplay

    from lightning_petl.data import DigitsData

    data = DigitsData()
    source = data.source("test")
    assert source is not None
    with (folder / "predict" / "predictions.csv").open(newline="") as file:
        predicted = [row["class"] for row in csv.DictReader(file)]
    true = [data.classes[label] for label in source.labels]
    figure, axis = plt.subplots(figsize=(4.5, 4), layout="constrained")
    ConfusionMatrixDisplay.from_predictions(true, predicted, ax=axis, cmap="Blues", colorbar=False)
    axis.set_title("RepAdapter, folded: test digits")
    figure.savefig(out, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
