"""The two ends of every comparison: nothing of the backbone trains, or all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lightning_petl as petl
from lightning_petl.testing import BACKBONES, add_noise
from lightning_petl.testing.backbones import Toy

TOY = BACKBONES["toy"]


def test_linear_probe_trains_the_head_alone(tmp_path: Path) -> None:
    model = petl.inject(TOY.build(), petl.LinearProbe())
    assert petl.trainable(model) == {}
    assert petl.adapted_layers(model) == {}
    model.head.requires_grad_(True)
    add_noise(petl.trainable(model).values())
    petl.save_adapter(model, tmp_path / "probe.safetensors", extra=("head",))
    loaded = petl.load_adapter(TOY.build(), tmp_path / "probe.safetensors")
    assert torch.equal(loaded(TOY.inputs()), model(TOY.inputs()))
    assert not torch.equal(loaded(TOY.inputs()), TOY.build()(TOY.inputs()))


def test_full_fine_tuning_trains_everything_and_stores_it(tmp_path: Path) -> None:
    model = petl.inject(TOY.build(), petl.FullFineTuning())
    assert petl.trainable(model).keys() == dict(model.named_parameters()).keys()
    add_noise(model.parameters())
    petl.save_adapter(model, tmp_path / "full.safetensors")
    loaded = petl.load_adapter(TOY.build(), tmp_path / "full.safetensors")
    assert torch.equal(loaded(TOY.inputs()), model(TOY.inputs()))


@pytest.mark.parametrize("method", [petl.LinearProbe(), petl.FullFineTuning()], ids=repr)
def test_merging_changes_nothing_and_only_once(method: petl.Method) -> None:
    model = petl.inject(TOY.build(), method)
    expected = model(TOY.inputs())
    certificate = petl.merge(model)
    assert (certificate.layers, certificate.created, certificate.float64_error) == ({}, (), 0.0)
    assert torch.equal(model(TOY.inputs()), expected)
    assert {type(module) for module in model.modules()} == {type(module) for module in Toy().modules()}
    with pytest.raises(petl.PETLError, match="merged already"):
        petl.merge(model)


def test_a_second_method_is_refused() -> None:
    model = petl.inject(TOY.build(), petl.LinearProbe())
    with pytest.raises(petl.PETLError, match="has adapters already"):
        petl.inject(model, petl.RepAdapter())
    assert petl.adapted_layers(model) == {}
