"""What predict leaves of a segmentation task: a mask of each image, and the mask's colours over the image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BasePredictionWriter

from lightning_petl.callbacks.overlays import palette_of, save
from lightning_petl.callbacks.pictures import indexed, overlay
from lightning_petl.errors import ConfigError
from lightning_petl.tasks import SegmentationTask


class MaskWriter(BasePredictionWriter):
    """Writes ``masks/NAME.png`` and ``overlays/NAME.png`` for each image, at the image's own size, batch by batch.

    A mask is a palette image whose pixels are the numbers of the classes, from 0 on, in the order of the data module's
    ``classes``; where the data set's files count from 1 (``reduce_zero_label``), that is not done again. Its colours
    are the data set's. NAME is the image's path below the data's folder, without its extension where no other image
    has the same. Written masks are taken out of what ``predict`` returns, which would hold all of them in memory.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self._names: tuple[str, ...] = ()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Learns the run folder, on every process: the first tells the others."""
        self._folder = trainer.log_dir

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Names the files.

        Raises:
            ConfigError: There are more classes than a palette has room for.
        """
        if not isinstance(pl_module, SegmentationTask):
            return
        if pl_module.num_classes > 256:
            raise ConfigError(
                f"{pl_module.num_classes} classes do not fit into a palette image", where="model.num_classes"
            )
        data: Any = getattr(trainer, "datamodule", None)
        self._names = () if data is None or not self._folder else file_names(data.predict_names)

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Writes one batch."""
        if not isinstance(pl_module, SegmentationTask) or not self._names or not self._folder:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        source, palette, folder = data.source("predict"), palette_of(trainer, pl_module), Path(self._folder)
        for index, mask in prediction:
            name, pixels = self._names[index], mask.to(torch.uint8).numpy()
            save(indexed(pixels, palette), folder / "masks" / f"{name}.png")
            save(overlay(source.image(index), pixels, palette), folder / "overlays" / f"{name}.png")
        prediction.clear()


def file_names(names: Sequence[str]) -> tuple[str, ...]:
    """Where the results of images go: their paths without extension, or with it where two would meet.

    No two differ by upper and lower case alone, so that they stay apart on every file system; where the paths do, a
    number follows. Steps out of the data's own folder are left out of a path: all results stay in the run folder.
    """
    paths = [_inside(name) for name in names]
    stems = [str(path.with_suffix("")) for path in paths]
    # Whole names count, too: x.JPG is one, and the stem of x.JPG.png.
    uses = Counter(text.casefold() for text in [*stems, *map(str, paths)])
    found: dict[str, str] = {}
    for stem, path in zip(stems, map(str, paths), strict=True):
        name = stem if uses[stem.casefold()] == 1 else path
        choices = chain([name], (f"{name}-{number}" for number in count(2)))
        free = next(each for each in choices if each.casefold() not in found)
        found[free.casefold()] = free
    return tuple(found.values())


def _inside(name: str) -> PurePosixPath:
    path = Path(name)
    return PurePosixPath(*(part for part in path.parts if part not in ("..", path.anchor)))
