"""Trainer callbacks: the best checkpoint, what a run leaves in its folder, and folding at the end of fit."""

from lightning_petl.callbacks.best_checkpoint import BestCheckpoint
from lightning_petl.callbacks.class_scores import ClassScoresWriter
from lightning_petl.callbacks.mask_predictions import MaskWriter
from lightning_petl.callbacks.overlays import Overlays
from lightning_petl.callbacks.predictions import PredictionWriter
from lightning_petl.callbacks.reparameterize import Reparameterize
from lightning_petl.callbacks.results import ResultsWriter

__all__ = [
    "BestCheckpoint",
    "ClassScoresWriter",
    "MaskWriter",
    "Overlays",
    "PredictionWriter",
    "Reparameterize",
    "ResultsWriter",
]
