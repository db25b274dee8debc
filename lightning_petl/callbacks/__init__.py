"""Trainer callbacks: the best checkpoint, what fit and test leave in the run folder, and folding at the end of fit."""

from lightning_petl.callbacks.best_checkpoint import BestCheckpoint
from lightning_petl.callbacks.predictions import PredictionWriter
from lightning_petl.callbacks.reparameterize import Reparameterize
from lightning_petl.callbacks.results import ResultsWriter

__all__ = ["BestCheckpoint", "PredictionWriter", "Reparameterize", "ResultsWriter"]
