"""The result file of a run: what was measured, on how many samples, and with what."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from lightning_petl.callbacks.best_checkpoint import BestCheckpoint
from lightning_petl.deployment import write_json
from lightning_petl.errors import ConfigError, PETLError
from lightning_petl.store import versions
from lightning_petl.tasks import PETLTask

_SPLITS = {"fit": "val", "validate": "val", "test": "test"}


class ResultsWriter(pl.Callback):
    """Writes ``results.json`` into the run folder at the end of fit, validate and test.

    It holds the metrics under their logged names, how many samples were expected and scored, what selected the
    weights, seeds, versions, parameter counts, the wall time in seconds, and under ``data`` what the data module says
    of itself (its ``record()``, where it has one).
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Starts the clock, and finds out before any work whether the run folder can be written.

        Raises:
            ConfigError: It cannot.
        """
        self._start = time.monotonic()
        self._folder = trainer.log_dir  # asked on every process: the first tells the others
        if trainer.is_global_zero and self._folder:
            probe_folder(Path(self._folder))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the results of fit; the metrics are those of the last validation."""
        self._write(trainer, pl_module, "fit")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the results of test."""
        self._write(trainer, pl_module, "test")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the results of validate."""
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module, "validate")

    def _write(self, trainer: pl.Trainer, task: pl.LightningModule, stage: str) -> None:
        told = data_record(trainer)  # on every process: a data module counts over all of them
        if not trainer.is_global_zero or not self._folder or getattr(trainer, "fast_dev_run", False):
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        checkpoint = next((c for c in trainer.callbacks if isinstance(c, BestCheckpoint)), None)  # type: ignore[attr-defined]
        parameters = list(task.parameters())
        results: dict[str, Any] = metrics | {
            "stage": stage,
            **_counts(trainer, metrics, stage),
            "selected_on": _selected_on(task, checkpoint, stage),
            "seeds": {"seed_everything": _environment_seed()},
            "versions": versions(),
            "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "total_parameters": sum(p.numel() for p in parameters),
            "wall_time_s": round(time.monotonic() - self._start, 3),
        }
        if checkpoint is not None and checkpoint.best_model_score is not None and stage == "fit":
            results[f"best/{checkpoint.monitor}"] = float(checkpoint.best_model_score)
        if told:
            results["data"] = told
        write_json(Path(self._folder) / "results.json", results)


def data_record(trainer: pl.Trainer) -> dict[str, object]:
    """What the trainer's data module says of itself; empty if it has nothing to say."""
    record = getattr(getattr(trainer, "datamodule", None), "record", None)
    return dict(record()) if callable(record) else {}


def _counts(trainer: pl.Trainer, metrics: dict[str, float], stage: str) -> dict[str, int | None]:
    """How many samples the split has, and how many were scored.

    Raises:
        PETLError: They differ in a whole pass over the split.
    """
    split = _SPLITS[stage]
    scored = metrics.get(f"{split}/n_scored")
    data = getattr(trainer, "datamodule", None)
    has_split = data is not None and getattr(data, "source", lambda _: None)(split) is not None
    expected = int(data.n_expected(split)) if has_split and data is not None else None
    limit = trainer.limit_test_batches if split == "test" else trainer.limit_val_batches
    if expected is not None and scored is not None and limit == 1.0 and int(scored) != expected:
        raise PETLError(f"{int(scored)} of {expected} samples were scored", where=f"data.{split}")
    return {"n_expected": expected, "n_scored": None if scored is None else int(scored)}


def _selected_on(task: pl.LightningModule, checkpoint: BestCheckpoint | None, stage: str) -> str | None:
    if stage == "fit":
        return None if checkpoint is None else checkpoint.selected_on
    return task.weights if isinstance(task, PETLTask) else None


def _environment_seed() -> int | None:
    seed: Any = os.environ.get("PL_GLOBAL_SEED")
    return None if seed is None else int(seed)


def probe_folder(folder: Path) -> None:
    """Creates a folder and writes into it, for the error to come before the work.

    Raises:
        ConfigError: It cannot be written.
    """
    probe = folder / f".write-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        fix = "choose a folder that can be written with trainer.default_root_dir"
        raise ConfigError(f"the run folder cannot be written: {error.strerror}", where=str(folder), fix=fix) from None
