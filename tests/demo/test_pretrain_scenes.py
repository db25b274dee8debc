"""The backbone of the segmentation demo: how it is trained, and the file that ships."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from lightning_petl import backbones
from lightning_petl.demo import pretrain_scenes as scenes
from lightning_petl.demo.training import read_header
from lightning_petl.errors import ConfigError


@pytest.fixture(scope="module")
def few() -> tuple[torch.Tensor, torch.Tensor]:
    return scenes.draw_scenes("train", 40, seed=0)


def test_scenes_and_their_labels(few: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = few
    assert (images.shape, images.dtype) == ((40, 3, 64, 64), torch.uint8)
    assert (labels.shape, labels.dtype) == ((40, 64, 64), torch.uint8)
    assert set(labels.unique().tolist()) == set(range(6))
    inputs = scenes.to_inputs(torch.tensor([0, 51, 255], dtype=torch.uint8))
    torch.testing.assert_close(inputs, torch.tensor([-1.0, -0.6, 1.0]))


def test_augmentation_of_zero_strength_is_the_identity(
    few: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ZOOM", "SHIFT", "GAIN", "OFFSET"):
        monkeypatch.setattr(scenes, name, 0.0)
    inputs = scenes.to_inputs(few[0])
    seen, named = scenes.augment(inputs, few[1], torch.Generator())
    torch.testing.assert_close(seen, inputs, atol=1e-5, rtol=0)
    assert torch.equal(named, few[1].long())


def test_augmentation_moves_picture_and_labels_together(
    few: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that is its labels, constant over blocks: inside them the two still agree."""
    monkeypatch.setattr(scenes, "GAIN", 0.0)
    monkeypatch.setattr(scenes, "OFFSET", 0.0)
    labels = few[1]
    pictures = (labels.float() + 1)[:, None].expand(-1, 3, -1, -1)
    seen, named = scenes.augment(pictures, labels, torch.Generator().manual_seed(0))
    inside = (named >= 0) & ((seen[:, 0] - seen[:, 0].round()).abs() < 1e-3)
    assert inside.float().mean() > 0.6
    assert (seen[:, 0].round().long() - 1 == named)[inside].float().mean() > 0.999
    outside = (named == scenes.OUTSIDE).float().mean()
    assert 0.02 < outside < 0.5
    assert (seen[:, 0][named == scenes.OUTSIDE] < 6.1).all()


def test_scores_are_the_tokens_classes() -> None:
    """One score a token, row by row, by the model's own classifier."""
    model = timm.create_model(scenes.BACKBONE, **scenes.BACKBONE_ARGS).eval()
    inputs = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = scenes.scores(model, inputs)
    assert found.shape == (2, 6, 64, 64)
    tokens = model.forward_features(inputs)
    corner, last = (model.head(tokens[:, place]) for place in (1, -1))  # the class token is in front
    torch.testing.assert_close(found[:, :, 0, 0], corner, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[:, :, -1, -1], last, atol=1e-5, rtol=1e-5)
    below = model.head(tokens[:, 1 + 8])  # the second row's first token, whose centre is between rows 11 and 12
    torch.testing.assert_close((found[:, :, 11, 0] + found[:, :, 12, 0]) / 2, below, atol=0.3, rtol=0.1)
    swapped = scenes.scores(model, inputs.flip(0))
    torch.testing.assert_close(swapped.flip(0), found, atol=1e-5, rtol=1e-5)


def test_pretraining_is_deterministic_and_leaves_the_random_state(few: tuple[torch.Tensor, torch.Tensor]) -> None:
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    first, again, other = (scenes.pretrain(*few, iterations=4, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_no_iterations_are_refused(few: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.raises(ConfigError, match="iterations"):
        scenes.pretrain(*few, iterations=0)


def test_command_writes_a_file_and_says_its_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenes, "SCENES", 40)
    monkeypatch.setattr(scenes, "HELD_OUT", 60)
    path = tmp_path / "new" / "weights.safetensors"
    scenes.main(["--out", str(path), "--iterations", "2", "--seed", "3"])
    header = read_header(path)
    assert header["script"].endswith("--iterations 2 --seed 3")
    assert header["held_out_miou"] == round(scenes.mean_iou(scenes.load(path), *scenes.held_out()), 4)
    assert f"mean IoU {header['held_out_miou']:.4f} on 60 held-out" in capsys.readouterr().out


def test_mean_iou_is_that_of_a_count_by_hand(few: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = timm.create_model(scenes.BACKBONE, **scenes.BACKBONE_ARGS).eval()
    images, labels = few
    with torch.inference_mode():
        found = scenes.scores(model, scenes.to_inputs(images)).argmax(dim=1)
    ious = [((found == c) & (labels == c)).sum() / ((found == c) | (labels == c)).sum() for c in range(6)]
    assert scenes.mean_iou(model, images, labels) == pytest.approx(float(torch.stack(ious).mean()), abs=1e-6)


def test_shipped_file_is_small_and_half_precision() -> None:
    assert scenes.WEIGHTS.stat().st_size < 1_000_000
    assert {weight.dtype for weight in load_file(scenes.WEIGHTS).values()} == {torch.float16}


def test_shipped_header_says_how_to_build_the_model() -> None:
    header = read_header(scenes.WEIGHTS)
    assert header["model_args"] == json.loads(json.dumps(scenes.BACKBONE_ARGS))
    assert header["script"].endswith(f"--iterations {scenes.ITERATIONS} --seed 0")
    model = timm.create_model(header["model"], **header["model_args"])
    assert not any(model.load_state_dict(load_file(scenes.WEIGHTS), strict=True))


def test_shipped_weights_load_as_any_backbones_do() -> None:
    arguments = {name: value for name, value in scenes.BACKBONE_ARGS.items() if name != "num_classes"}
    model = backbones.create(scenes.BACKBONE, arguments, 0, "lightning_petl:demo/vit_scenes.safetensors")
    stored = load_file(scenes.WEIGHTS)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, stored[name].float()), name


def test_shipped_weights_score_what_their_header_says() -> None:
    measured = scenes.mean_iou(scenes.load(scenes.WEIGHTS), *scenes.held_out())
    assert measured == pytest.approx(read_header(scenes.WEIGHTS)["held_out_miou"], abs=0.005)
