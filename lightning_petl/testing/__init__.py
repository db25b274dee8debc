"""The conformance suite for method plugins: a plugin's tests subclass `MethodContract`. It needs pytest."""

from lightning_petl.testing.backbones import BACKBONES, Backbone, add_noise
from lightning_petl.testing.contract import MethodContract

__all__ = ["BACKBONES", "Backbone", "MethodContract", "add_noise"]
