"""The backbone of the video demo: stills and their labels, how it is trained, and the file that ships."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lightning_petl import backbones
from lightning_petl.demo import pretrain_stills as stills
from lightning_petl.demo.digits import load_digits
from lightning_petl.demo.pretrain import accuracy
from lightning_petl.demo.training import read_header
from lightning_petl.errors import ConfigError


def test_the_label_says_where_the_ink_is() -> None:
    inputs, labels = stills.draw_stills("train", 300, np.random.default_rng(3))
    assert (inputs.shape, inputs.dtype) == ((300, 3, 32, 32), torch.float32)
    assert -1 <= float(inputs.min()) < float(inputs.max()) <= 1
    assert set((labels // 9).tolist()) == set(range(5))
    ink = (inputs[:, 0] + 1).double()
    angle = torch.arange(32).double().add(0.5).div(32).mul(2 * math.pi)
    for axis, part in ((1, labels % 9 // 3), (2, labels % 3)):
        along = ink.sum(dim=axis)
        middle = torch.atan2((along * angle.sin()).sum(1), (along * angle.cos()).sum(1)) / (2 * math.pi) % 1
        agree = (middle * 3).long() == part
        assert float(agree.float().mean()) > 0.85, "a digit's ink is not always around its middle"


def test_training_and_test_show_other_digits() -> None:
    pools = [
        stills.split(load_digits(stills.pretrain.CLASSES)[1], 120, val_per_class=0)[name] for name in ("train", "test")
    ]
    assert not set(pools[0].tolist()) & set(pools[1].tolist())


def test_a_few_batches_make_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stills, "STILLS", 100)
    monkeypatch.setattr(stills, "HELD_OUT", 50)
    state = torch.get_rng_state()
    stills.train(*stills.held_out(), iterations=1)
    assert torch.equal(torch.get_rng_state(), state)
    first = stills.make(tmp_path / "a.safetensors", iterations=3)
    assert stills.make(tmp_path / "b.safetensors", iterations=3) == first
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert read_header(tmp_path / "a.safetensors")["held_out_accuracy"] == round(first, 4)
    with pytest.raises(ConfigError, match="0 iterations"):
        stills.make(tmp_path / "c.safetensors", iterations=0)


def test_the_shipped_file_is_what_its_header_says() -> None:
    header = read_header(stills.WEIGHTS)
    assert (
        header["script"] == f"python -m lightning_petl.demo.pretrain_stills --iterations {stills.ITERATIONS} --seed 0"
    )
    assert header["model_args"] == json.loads(json.dumps(stills.BACKBONE_ARGS))
    measured = accuracy(stills.load(stills.WEIGHTS), *stills.held_out())
    assert measured == pytest.approx(header["held_out_accuracy"], abs=0.004)  # sums differ between machines
    assert measured > 0.7, "chance is 1 in 45"
    assert stills.WEIGHTS.stat().st_size < 400_000


def test_the_demo_loads_it_as_any_file() -> None:
    arguments = {key: value for key, value in stills.BACKBONE_ARGS.items() if key != "num_classes"}
    model = backbones.create(stills.pretrain.BACKBONE, arguments, 0, "lightning_petl:demo/vit_stills.safetensors")
    found = load_file(stills.WEIGHTS)
    assert torch.equal(model.get_parameter("blocks.0.attn.qkv.weight"), found["blocks.0.attn.qkv.weight"].float())
