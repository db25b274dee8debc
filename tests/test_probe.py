"""Running a model once without a trace, with inputs found by trying."""

from __future__ import annotations

import logging

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_petl import probe
from lightning_petl.testing.backbones import Toy, swin, vit


class Counting(nn.Module):
    """Changes all that a forward can change: buffers, statistics and the random state."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.modes.append(self.training)
        return nn.functional.dropout(self.norm(x), 0.5, self.training) + torch.rand(())


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("training", [True, False])
def test_forward_leaves_no_trace(device: str, training: bool) -> None:
    model = Counting()
    model.norm.train(False)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    probe.forward(model, (torch.ones(2, 3, 4, 4, device=device),), training)
    assert model.modes == [training]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]


def test_forward_restores_modes_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(RuntimeError):
        probe.forward(model, (torch.ones(2, 5),), training=False)
    assert model.training
    assert model[0].training


def test_evaluation_is_undone() -> None:
    model = Toy()
    model.blocks[0].eval()
    with probe.evaluation(model):
        assert not any(module.training for module in model.modules())
        assert not model(torch.ones(1, 2, 16)).requires_grad
    assert model.training
    assert not model.blocks[0].training
    assert model.blocks[1].training


class SizeInConfig(nn.Module):
    """A model that says its image size as transformers models do, and takes no other."""

    class config:  # noqa: N801
        image_size = 48

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == 48
        return self.conv(x)


class Frames(SizeInConfig):
    class config:  # noqa: N801
        image_size = 48
        num_frames = 6

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (6, 1, 48, 48)
        return self.conv(x.flatten(0, 1))


class ReadsValues(nn.Module):
    """Its control flow depends on values, so that it cannot run on meta tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum().item() == 0 else self.fc(-x)


@pytest.mark.parametrize(
    ("model", "shape", "device"),
    [
        (vit(img_size=40), (2, 3, 40, 40), "meta"),
        (swin(), (2, 3, 32, 32), "meta"),
        (timm.create_model("resnet18", in_chans=1), (2, 1, 224, 224), "meta"),
        (SizeInConfig(), (2, 1, 48, 48), "meta"),
        (Frames(), (2, 6, 1, 48, 48), "meta"),
        (nn.Linear(7, 2), (2, 4, 7), "meta"),
        (nn.Sequential(nn.Linear(7, 2), nn.BatchNorm1d(2)), (2, 7), "meta"),
        (Toy(), (2, 4, 16), "meta"),
        (ReadsValues(), (2, 4, 6), "cpu"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_inputs_are_found(model: nn.Module, shape: tuple[int, ...], device: str) -> None:
    found = probe.usable_inputs(model)
    assert found is not None
    assert (found[0].shape, found[0].device.type) == (torch.Size(shape), device)


class Unguessable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.fc(left + right)


def test_no_guess_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert probe.usable_inputs(Unguessable()) is None
    assert len(caplog.records) == 1
    assert "pass inputs=" in caplog.text


def test_given_inputs_are_used_and_their_error_is_shown() -> None:
    given = (torch.ones(3, 4), torch.ones(3, 4))
    found = probe.usable_inputs(Unguessable(), given)
    assert found is not None
    assert all(tensor.is_meta for tensor in found)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        probe.usable_inputs(Unguessable(), (torch.ones(3, 5), torch.ones(3, 5)))


class Tied(nn.Module):
    """One norm in two places, one weight under two modules, one buffer too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.norm1 = self.norm2 = nn.BatchNorm1d(8)
        self.register_buffer("one", torch.ones(8))
        self.register_buffer("other", self.one)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.second(self.norm1(self.first(x)))) * self.one + self.other


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_run_leaves_tied_modules_and_tensors_as_they_are(device: str) -> None:
    model = Tied()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    same = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    for training in (False, True):
        probe.forward(model, (torch.zeros(4, 8, device=device),), training)
    assert {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()} == same
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
