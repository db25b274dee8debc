"""The scores of each class after a test of segmentation: a table and a bar chart."""

from __future__ import annotations

import csv
import io
import logging
import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from lightning_petl import tensorfile
from lightning_petl.tasks import SegmentationTask
from lightning_petl.tasks.confusion import ClassScores

logger = logging.getLogger(__name__)


class ClassScoresWriter(pl.Callback):
    """After a test of segmentation, writes ``class_scores.csv`` and ``class_scores.png`` into the run folder.

    The table has a line for each class: its IoU, its accuracy and its number of pixels; a score that a class does not
    have is empty. The chart, for which matplotlib has to be installed, shows the IoU from the best class to the worst.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Learns the run folder, on every process: the first tells the others."""
        self._folder = trainer.log_dir

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes both."""
        if not isinstance(pl_module, SegmentationTask) or not trainer.is_global_zero or not self._folder:
            return
        scores = pl_module.class_scores.get("test")
        if scores is None or getattr(trainer, "fast_dev_run", False):
            return
        folder, names = Path(self._folder), pl_module.class_names
        text = table(names, scores)
        tensorfile.replace(folder / "class_scores.csv", lambda path: _write(path, text))
        if chart_drawn(names, scores, folder / "class_scores.png"):
            return
        logger.info("no class_scores.png: matplotlib is not installed (pip install 'lightning-petl[demo]')")


def table(names: tuple[str, ...], scores: ClassScores) -> str:
    """The scores as CSV."""
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(("class", "iou", "accuracy", "pixels"))
    values = zip(names, scores.iou.tolist(), scores.accuracy.tolist(), scores.pixels.tolist(), strict=True)
    for name, iou, accuracy, pixels in values:
        rows.writerow((name, *("" if math.isnan(each) else f"{each:.6f}" for each in (iou, accuracy)), pixels))
    return text.getvalue()


def chart_drawn(names: tuple[str, ...], scores: ClassScores, path: Path) -> bool:
    """Draws the IoU of each class that has one; whether it could."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    known = [(iou, name) for name, iou in zip(names, scores.iou.tolist(), strict=True) if not math.isnan(iou)]
    known.sort(key=lambda pair: pair[0])
    figure = Figure(figsize=(6.4, 1.2 + 0.24 * max(1, len(known))), layout="constrained")
    axis: Any = figure.subplots()
    bars = axis.barh([name for _, name in known], [100 * iou for iou, _ in known], color="#4878a8")
    axis.bar_label(bars, fmt="%.1f", padding=3, fontsize=8, bbox={"color": "white", "pad": 0.5})
    axis.axvline(100 * scores.miou, color="#c44e52", linestyle="--", linewidth=1, zorder=0.5)
    axis.set(xlim=(0, 108), ylim=(-0.6, len(known) - 0.4), xlabel="IoU, %", title=f"mean IoU {100 * scores.miou:.1f}")
    axis.tick_params(axis="y", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    tensorfile.replace(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
    return True


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="")
