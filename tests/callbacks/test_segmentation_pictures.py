"""What a segmentation run leaves to look at, through the real command on files."""

from __future__ import annotations

import csv
import json
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmenters
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator

from lightning_petl import ConfigError, cli
from lightning_petl.callbacks import BestCheckpoint, Overlays
from lightning_petl.callbacks.class_scores import chart_drawn, table
from lightning_petl.callbacks.mask_predictions import file_names
from lightning_petl.callbacks.overlays import palette_of
from lightning_petl.callbacks.pictures import _font, comparison, indexed, overlay, picture
from lightning_petl.data.input_config import InputConfig
from lightning_petl.tasks import ClassificationTask
from lightning_petl.tasks.confusion import ClassScores

PALETTE = np.array([[0, 0, 0], [200, 0, 0], [0, 180, 0], [0, 0, 160], [90, 90, 0]], np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set and a fitted run on it."""
    root = tmp_path_factory.mktemp("pictures")
    segmenters.write_scenes(root / "data", train=4, val=3, test=3)
    (root / "config.yaml").write_text(
        "model: {class_path: SegmentationTask, init_args: {backbone: vit_tiny_patch16_224, pretrained: false, "
        "backbone_args: {img_size: 32, patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}, warmup_epochs: 0, "
        "method: {class_path: RepAdapter, init_args: {hidden_dim: 4}}}}\n"
        f"data: {{class_path: SegmentationFolderData, init_args: {{root: {root / 'data'}, image_size: 32, "
        "class_names: [ground, red, green, blue, none], test: [images/test, masks/test], batch_size: 2, "
        f"palette: {PALETTE.tolist()}}}}}\n"
        "trainer: {max_epochs: 4, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}\n"
    )
    run(root, "fit", "run", "--overlays.samples", "3", "--overlays.every_n_epochs", "2")
    return root


def run(root: Path, stage: str, name: str, *options: str) -> None:
    words = ["--config", str(root / "config.yaml"), "--trainer.default_root_dir", str(root / name)]
    assert cli.run([stage, *words, *options]) == 0


def results(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "results.json").read_text())
    return found


def test_overlays_while_training(folder: Path) -> None:
    names = sorted(path.name for path in (folder / "run" / "overlays").iterdir())
    assert names == ["epoch-001.png", "epoch-003.png"]
    with Image.open(folder / "run" / "overlays" / "epoch-003.png") as sheet:
        assert sheet.mode == "RGB"
        assert sheet.height > 3 * 200  # three rows
    found = results(folder / "run")
    assert found["selected_on"] == "val/miou (max)"
    assert found["n_expected"] == found["n_scored"] == 3


@pytest.mark.parametrize("source", ["weights", "checkpoint"])
def test_a_validation_leaves_a_picture_of_epoch_0(folder: Path, source: str) -> None:
    last = folder / "run/checkpoints/last.ckpt"
    from_ = {"weights": ("--model.weights", folder / "run/merged.safetensors"), "checkpoint": ("--ckpt_path", last)}
    run(folder, "validate", f"validate_{source}", *map(str, from_[source]))
    assert [path.name for path in (folder / f"validate_{source}" / "overlays").iterdir()] == ["epoch-000.png"]


def test_the_files_test_and_fold_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = []
    for kind in ("adapter", "merged"):
        run(folder, "test", f"test_{kind}", "--model.weights", str(folder / f"run/{kind}.safetensors"))
        scores.append(results(folder / f"test_{kind}"))
    for name, value in scores[0].items():
        if name.startswith("test/"):
            assert scores[1][name] == pytest.approx(value, abs=1e-5), name
    certificate = json.loads((folder / "run" / "certificate.json").read_text())
    assert certificate["model"]["top1_agreement"] == 1.0
    assert certificate["model"]["inputs"] == 3
    assert certificate["model"]["source"] == "validation"
    assert cli.run(["verify", str(folder / "run")]) == 0
    assert cli.run(["inspect", str(folder / "run/merged.safetensors")]) == 0
    assert "pixels    linear head on its own layers" in capsys.readouterr().out
    with (folder / "test_merged" / "class_scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["ground", "red", "green", "blue", "none"]
    assert rows[0]["iou"] == f"{scores[1]['test/iou/ground']:.6f}"
    pixels = sum(np.asarray(Image.open(path)).size for path in (folder / "data/masks/test").iterdir())
    ignored = sum(int((np.asarray(Image.open(path)) == 255).sum()) for path in (folder / "data/masks/test").iterdir())
    assert sum(int(row["pixels"]) for row in rows) == pixels - ignored
    for name in ("class_scores.png", "overlays/test.png"):
        with Image.open(folder / "test_merged" / name) as image:
            assert min(image.size) > 100


def test_predicted_masks_are_the_classes_at_the_images_size(folder: Path) -> None:
    weights = ["--model.weights", str(folder / "run/merged.safetensors")]
    run(folder, "predict", "predict", *weights, "--model.flip", "true", "--data.batch_size", "1")
    run(folder, "test", "flipped", *weights, "--model.flip", "true")
    counts = np.zeros((5, 5), np.int64)
    for index in range(3):
        true = np.asarray(Image.open(folder / f"data/masks/test/{index}.png"))
        with Image.open(folder / f"predict/masks/images/test/{index}.png") as mask:
            assert mask.mode == "P"
            assert mask.getpalette()[:15] == PALETTE.flatten().tolist()
            found = np.asarray(mask)
        with Image.open(folder / f"predict/overlays/images/test/{index}.png") as shown:
            assert shown.size == true.shape[::-1]
        assert found.shape == true.shape
        assert found.max() < 5
        known = true != 255
        np.add.at(counts, (true[known], found[known]), 1)
    expected = ClassScores.of(torch.from_numpy(counts)).miou
    assert results(folder / "flipped")["test/miou"] == pytest.approx(expected, abs=1e-6)
    assert not (folder / "predict" / "predictions.csv").exists()


def test_images_of_like_names_keep_their_own_results(folder: Path) -> None:
    photos = folder / "alike"
    photos.mkdir()
    for name, size, kind in (("x.JPG", (40, 30), "JPEG"), ("x.png", (50, 30), "PNG"), ("x.JPG.png", (60, 30), "PNG")):
        Image.new("RGB", size, (90, 20, 20)).save(photos / name, kind)
    weights = ["--model.weights", str(folder / "run/merged.safetensors")]
    run(folder, "predict", "alike_run", *weights, "--data.predict", str(photos))
    for kind in ("masks", "overlays"):
        sizes = {path.name: Image.open(path).size for path in (folder / "alike_run" / kind).iterdir()}
        assert sizes == {"x.JPG.png": (40, 30), "x.png.png": (50, 30), "x.JPG.png.png": (60, 30)}


def test_images_without_any_mask_can_be_predicted(folder: Path) -> None:
    photos = folder / "alone"
    photos.mkdir()
    Image.new("RGB", (40, 30), (90, 20, 20)).save(photos / "x.png")
    none = ["--data.root", str(photos), *(f"--data.{split}=null" for split in ("train", "val", "test"))]
    for kind in ("merged", "adapter"):
        weights = ["--model.weights", str(folder / f"run/{kind}.safetensors")]
        run(folder, "predict", f"alone_{kind}", *weights, *none, "--data.predict", ".")
        assert Image.open(folder / f"alone_{kind}" / "masks/x.png").size == (40, 30)


def test_tensorboard_shows_pictures_and_scores(folder: Path) -> None:
    """Beside the run's own files, in the folder that the logger is given."""
    here = folder / "board"
    where = ["--trainer.logger.save_dir", str(here), "--trainer.logger.name", "", "--trainer.logger.version", ""]
    run(folder, "fit", "board", "--trainer.logger", "TensorBoardLogger", *where, "--trainer.max_epochs", "2")
    assert len(list(here.glob("events.out.tfevents.*"))) == 1
    board = EventAccumulator(str(here), size_guidance={IMAGES: 0})
    board.Reload()
    assert board.Tags()[IMAGES] == ["val/overlays"]
    shown = board.Images("val/overlays")
    assert [each.step for each in shown] == [2, 4]  # two batches an epoch
    for epoch, each in enumerate(shown):
        with Image.open(here / f"overlays/epoch-{epoch:03d}.png") as written:
            kept = np.asarray(Image.open(BytesIO(each.encoded_image_string)))
            np.testing.assert_array_equal(kept, np.asarray(written))
    assert board.Scalars("val/miou")[-1].value == pytest.approx(results(here)["val/miou"], abs=1e-6)


def test_loggers_that_take_images_get_them(tmp_path: Path) -> None:
    class Board:
        def __init__(self) -> None:
            self.given: list[tuple[str, tuple[int, ...], int]] = []

        def add_image(self, title: str, pixels: np.ndarray, global_step: int, dataformats: str) -> None:
            assert dataformats == "HWC"
            self.given.append((title, pixels.shape, global_step))

    board = Board()
    logger = type("Logger", (), {"experiment": board, "save_dir": str(tmp_path)})()
    task = segmenters.new_task()
    trainer = segmenters.trainer(tmp_path, callbacks=[Overlays(samples=2)])
    trainer._loggers = [logger]  # type: ignore[list-item]
    callback = trainer.callbacks[0]  # type: ignore[attr-defined]
    callback.setup(trainer, task, "test")
    batch = next(iter(segmenters.eval_batches()))
    outputs = {"predicted": [mask.clamp(max=4) for mask in batch[1]]}
    callback.on_test_batch_end(trainer, task, outputs, batch, 0)
    callback.on_test_epoch_end(trainer, task)
    assert [(title, len(shape)) for title, shape, _ in board.given] == [("test/overlays", 3)]
    assert (tmp_path / "overlays" / "test.png").exists()


def test_an_overlay_shows_what_the_mask_says() -> None:
    image = Image.new("RGB", (3, 2), (100, 150, 200))
    mask = np.array([[0, 1], [255, 2]], np.uint8)
    shown = np.asarray(overlay(image, mask, PALETTE, opacity=0.5)).astype(int)
    grey = 0.299 * 100 + 0.587 * 150 + 0.114 * 200
    assert shown[0, 0].tolist() == [100, 150, 200]  # black: the image as it is
    np.testing.assert_allclose(shown[0, 2], (PALETTE[1] + grey) / 2, atol=2)
    np.testing.assert_allclose(shown[1, 0], (255 + grey) / 2, atol=2)  # without a class
    np.testing.assert_allclose(shown[1, 2], (PALETTE[2] + grey) / 2, atol=2)


def test_a_picture_undoes_the_normalisation() -> None:
    config = InputConfig((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), (8, 8), "bilinear", 1.0)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    tensor = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
    np.testing.assert_array_equal(np.asarray(picture(tensor, config)), pixels)


def test_an_indexed_mask_keeps_its_numbers() -> None:
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(np.asarray(indexed(mask, PALETTE)), mask)


def test_a_sheet_names_the_classes_that_occur() -> None:
    row = (Image.new("RGB", (30, 20)), np.zeros((20, 30), np.uint8), np.full((20, 30), 255, np.uint8))
    few = comparison([row], ["ground"] * 5, PALETTE, side=60)
    long_names = comparison([row], ["a long name of a class"] * 5, PALETTE, side=60)
    assert few.width == long_names.width == 3 * 66 + 6
    assert long_names.height > few.height  # the legend takes another line


def test_a_legend_has_the_letters_of_many_languages() -> None:
    """No two letters look the same, as the boxes do that stand for glyphs which a font lacks."""
    pytest.importorskip("matplotlib")
    row = (Image.new("RGB", (30, 20)), np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8))
    drawn = {comparison([row], [letter] * 5, PALETTE).tobytes() for letter in "aäöüßéłПβж\ue000"}
    assert len(drawn) == 11


def test_a_legend_needs_no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    _font.cache_clear()
    try:
        row = (Image.new("RGB", (30, 20)), np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8))
        assert comparison([row], ["ground"] * 5, PALETTE) != comparison([row], ["water"] * 5, PALETTE)
    finally:
        _font.cache_clear()


def test_a_table_leaves_what_is_unknown_empty(tmp_path: Path) -> None:
    scores = ClassScores.of(torch.tensor([[3, 1, 0], [0, 0, 0], [0, 0, 0]]))
    lines = table(("a", "b, c", "d"), scores).split("\r\n")
    assert lines[:4] == ["class,iou,accuracy,pixels", "a,0.750000,0.750000,4", '"b, c",0.000000,,0', "d,,,0"]
    assert chart_drawn(("a", "b, c", "d"), scores, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 0


def test_results_stay_in_the_run_folder_under_names_of_their_own() -> None:
    assert file_names(["a/1.jpg", "b/1.jpg"]) == ("a/1", "b/1")
    assert file_names(["a/1.jpg", "a/1.png"]) == ("a/1.jpg", "a/1.png")
    assert file_names(["../x/1.jpg", "/y/2.jpg"]) == ("x/1", "y/2")
    assert file_names(["x.JPG", "x.png", "x.JPG.png"]) == ("x.JPG", "x.png", "x.JPG.png")


@pytest.mark.parametrize(
    "names",
    [
        ["x.JPG.png", "x.JPG", "x.png"],
        ["a.png", "a.png.png", "a.png.png.png", "a.jpg"],
        ["A.jpg", "a.jpg", "a.jpg-2.png", "B/c.png", "b/C.png"],
        ["../x/1.jpg", "x/1.jpg", "../../x/1.jpg", "x/1.png"],
    ],
)
def test_names_of_results_are_unique_whatever_the_case(names: list[str]) -> None:
    assert len({name.casefold() for name in file_names(names)}) == len(names)


def test_a_data_set_without_colours_gets_some() -> None:
    task, trainer = segmenters.new_task(), segmenters.trainer(Path())
    palette = palette_of(trainer, task)
    assert len({tuple(colour) for colour in palette.tolist()}) == 5


def test_checkpoints_are_chosen_by_the_tasks_metric(tmp_path: Path) -> None:
    trainer = segmenters.trainer(tmp_path)
    for given, task, expected in (
        (None, segmenters.new_task(), "val/miou"),
        ("val/loss", segmenters.new_task(), "val/loss"),
        (None, ClassificationTask.__new__(ClassificationTask), "val/acc1"),
    ):
        chosen = BestCheckpoint(given)
        chosen.setup(trainer, task, "fit")
        assert chosen.monitor == expected


@pytest.mark.parametrize(
    ("settings", "told"), [({"samples": -1}, "overlays.samples"), ({"every_n_epochs": 0}, "every_n")]
)
def test_bad_settings_are_named(settings: dict[str, int], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Overlays(**settings)
