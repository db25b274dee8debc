"""The control of the video demo: the same clips with their frames in a random order."""

from __future__ import annotations

from typing import Any

import torch

from lightning_petl.data import SomethingSomethingV2Data


class ShuffledFramesData(SomethingSomethingV2Data):
    """Something-Something's layout with the frames of every clip shuffled, in training and in evaluation.

    Each frame still reaches the model, and only their order is lost. Every clip and view has an order of its own, from
    ``seed``: the same in every test of the same files, other ones in each epoch of training.
    """

    _generator: torch.Generator | None = None

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Shuffles the frames of a batch ``(clips (..., frames, 3, height, width), labels)``."""
        clips, labels = batch
        if self._generator is None:
            self._generator = torch.Generator().manual_seed(self.seed)
        flat = clips.flatten(0, -5)
        orders = torch.rand(flat.shape[:2], generator=self._generator).argsort(dim=1).to(flat.device)
        shuffled = flat[torch.arange(len(flat), device=flat.device)[:, None], orders]
        return shuffled.reshape(clips.shape), labels
