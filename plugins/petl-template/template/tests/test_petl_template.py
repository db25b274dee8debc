"""Template keeps the contract of methods, and does what it says."""

from __future__ import annotations

import pytest
import torch
from petl_template import Template

from lightning_petl import ConfigError, adapted_layers, inject
from lightning_petl.testing import BACKBONES, MethodContract


class TestTemplate(MethodContract):
    method = Template(strength=0.5)


def test_each_output_has_its_factor() -> None:
    model = inject(BACKBONES["toy"].build(), Template(strength=2.0))
    layer = adapted_layers(model)["blocks.0.mlp.fc1"]
    x = torch.randn(3, 16)
    before = layer(x)
    with torch.no_grad():
        layer.adapter.gain[4] = 0.25
    expected = before.clone()
    expected[:, 4] *= 1.5
    torch.testing.assert_close(layer(x), expected)


def test_a_strength_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="strength"):
        Template(strength=0)
