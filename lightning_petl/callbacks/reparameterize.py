"""Folding at the end of fit: from the best checkpoint to an adapter file, a merged file and a certificate."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_petl.callbacks.best_checkpoint import BestCheckpoint
from lightning_petl.deployment import publish
from lightning_petl.errors import ConfigError
from lightning_petl.store import save_adapter
from lightning_petl.tasks import PETLTask, checkpoint
from lightning_petl.tensorfile import read_header

logger = logging.getLogger(__name__)


class Reparameterize(pl.Callback):
    """At the end of fit, writes ``adapter.safetensors``, ``merged.safetensors`` and ``certificate.json``.

    Of a method that does not fold, the adapter file alone.

    It works on a copy, from the best checkpoint, after training is over, so that ``test(ckpt_path="best")`` finds the
    task as it was. The certificate's inputs are held-out samples.

    Args:
        enabled: Whether to fold at all.
        inputs: Number of held-out inputs to compare on.
    """

    def __init__(self, enabled: bool = True, inputs: int = 64) -> None:
        if inputs < 1:
            raise ConfigError(f"inputs is {inputs}", where="reparameterize.inputs", fix="give 1 or more")
        self.enabled, self.inputs = enabled, inputs

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Learns the run folder, on every process: the first tells the others."""
        self._folder = trainer.log_dir

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the files, on the first process alone."""
        if (
            not self.enabled
            or not trainer.is_global_zero
            or not self._folder
            or getattr(trainer, "fast_dev_run", False)
        ):
            return
        if not isinstance(pl_module, PETLTask):
            raise ConfigError("only a PETLTask can be folded", where="model")
        folder = Path(self._folder)
        model = self._best(trainer, pl_module)
        path = folder / "adapter.safetensors"
        architecture = pl_module.architecture
        save_adapter(model, path, pl_module.stored, pl_module.task_record(), architecture.record())
        if not pl_module.method.folds:
            name = type(pl_module.method).__name__
            logger.info(
                "%s does not fold: its adapter file is tested and served as it is, no merged file is written", name
            )
            return
        batches, source = self._held_out(trainer, pl_module)
        header = read_header(path)
        certificate = publish(model, header, folder / "merged.safetensors", architecture, batches, source)
        logger.info("folded %d layers, largest float64 error %.1e", len(certificate.layers), certificate.float64_error)

    def _best(self, trainer: pl.Trainer, task: PETLTask) -> nn.Module:
        """A copy of the backbone on the CPU, with what the best checkpoint holds."""
        model = copy.deepcopy(task.backbone).cpu()
        best = next((c for c in trainer.callbacks if isinstance(c, BestCheckpoint)), None)  # type: ignore[attr-defined]
        path = best.best_model_path if best is not None else ""
        if path:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            checkpoint.check(saved, task)
            prefix = "backbone."
            state = {name.removeprefix(prefix): tensor for name, tensor in saved["state_dict"].items()}
            model.load_state_dict(state, strict=False)  # the names were compared above
        return model

    def _held_out(self, trainer: pl.Trainer, task: PETLTask) -> tuple[list[Tensor], str]:
        """Inputs of the validation split, or of the training split where there is none."""
        data = getattr(trainer, "datamodule", None)
        if data is None:
            return [task.architecture.example(task.backbone, min(self.inputs, 8)).cpu()], "random"
        split = "validation" if data.source("val") is not None else "training"
        loader = data.val_dataloader() if split == "validation" else data.train_dataloader()
        batches, left = [], self.inputs
        for batch in loader:
            batches.append(task.inputs_of(batch)[:left])
            left -= len(batches[-1])
            if left <= 0:
                break
        return batches, split
