"""Segmentation as a task: losses, what is stored, scores over a data set, by one process and by two."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import segmenters
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from lightning_petl import BitFit, ConfigError, FullFineTuning, PETLError, RepAdapter, merge, save_adapter
from lightning_petl.tasks import SegmentationTask, checkpoint
from lightning_petl.tasks.confusion import ClassScores
from lightning_petl.tasks.pixel_losses import IGNORED, cross_entropy, dice_loss

ROOT = Path(__file__).parents[2]


def test_cross_entropy_is_pytorchs_where_a_pixel_has_a_class() -> None:
    scores, masks = torch.randn(2, 5, 6, 7), torch.randint(0, 5, (2, 6, 7))
    masks[0, :3] = IGNORED
    torch.testing.assert_close(cross_entropy(scores, masks), F.cross_entropy(scores, masks, ignore_index=IGNORED))


@pytest.mark.parametrize("loss", [cross_entropy, dice_loss])
def test_a_batch_without_classes_has_loss_zero_with_a_gradient(loss: Any) -> None:
    scores = torch.randn(2, 5, 6, 7, requires_grad=True)
    found = loss(scores, torch.full((2, 6, 7), IGNORED))
    assert found.item() == 0
    found.backward()
    assert scores.grad is not None
    assert torch.equal(scores.grad, torch.zeros_like(scores))


def test_dice_is_that_of_one_hot_masks() -> None:
    scores, masks = torch.randn(2, 5, 6, 7), torch.randint(0, 3, (2, 6, 7))  # classes 3 and 4 do not occur
    masks[1, 2:4] = IGNORED
    known = (masks != IGNORED)[:, None]
    probabilities = scores.softmax(1) * known
    targets = F.one_hot(masks.clamp(max=4), 5).movedim(-1, 1) * known
    expected = []
    for label in range(3):
        p, t = probabilities[:, label], targets[:, label]
        expected.append(1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
    torch.testing.assert_close(dice_loss(scores, masks), torch.stack(expected).mean())


def test_the_loss_adds_up_heads_and_dice() -> None:
    task = segmenters.new_task(auxiliary_layers=[1, 2], auxiliary_weight=0.3, dice_weight=0.5, head_dropout=0.0).eval()
    task.log = lambda *_, **__: None  # type: ignore[method-assign]
    images, masks = next(iter(segmenters.train_batches()))
    scores = [
        F.interpolate(x, size=(32, 32), mode="bilinear") for x in task.architecture.run_all(task.backbone, images)
    ]
    assert len(scores) == 3
    losses = [cross_entropy(x, masks) + 0.5 * dice_loss(x, masks) for x in scores]
    torch.testing.assert_close(task.training_step((images, masks), 0), losses[0] + 0.3 * (losses[1] + losses[2]))


def test_an_all_ignored_batch_is_counted_and_trains_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task, run = segmenters.new_task(dice_weight=1.0), segmenters.trainer(tmp_path)
    with caplog.at_level("WARNING"):
        run.fit(task, segmenters.train_batches(4, ignored=1))
    assert run.callback_metrics["train/ignored_batches"] == 1
    assert "no pixel of a training batch has a class" in caplog.text
    assert all(torch.isfinite(parameter).all() for parameter in task.parameters())


def test_classes_without_a_pixel_are_told_once_a_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task, run = segmenters.new_task(), segmenters.trainer(tmp_path, max_epochs=2)
    with caplog.at_level("WARNING"):
        run.fit(task, segmenters.train_batches(), segmenters.eval_batches())  # the masks hold 0 to 3 of 5 classes
    assert caplog.text.count("no mask of val has a pixel of 1 of the 5 classes: 4;") == 1
    with caplog.at_level("WARNING"):
        run.test(task, segmenters.eval_batches(), verbose=False)
    assert caplog.text.count("no mask of test has a pixel of 1 of the 5 classes: 4;") == 1


def test_classes_that_occur_are_not_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = segmenters.new_task(num_classes=4)
    with caplog.at_level("WARNING"):
        segmenters.trainer(tmp_path).test(task, segmenters.eval_batches(), verbose=False)
    assert "has a pixel of" not in caplog.text


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    task = segmenters.new_task()
    with torch.no_grad():
        task.backbone.decode_head.norms[0].weight.fill_(float("inf"))
    with pytest.raises(PETLError, match="the loss is"):
        segmenters.trainer(tmp_path).fit(task, segmenters.train_batches())


@pytest.mark.parametrize("kind", ["vit", "swin", "convnext"])
def test_what_trains_is_stored_and_restored(kind: str, tmp_path: Path) -> None:
    """BatchNorm statistics of the head, too, in checkpoint and adapter file; the frozen rest stays as it is."""
    settings = {"head": "naive", "auxiliary_layers": [0]}
    task, run = segmenters.new_task(kind, **settings), segmenters.trainer(tmp_path)
    run.fit(task, segmenters.train_batches())
    run.save_checkpoint(tmp_path / "some.ckpt")
    statistics = task.backbone.decode_head.decoder.convolution[1]
    assert statistics.num_batches_tracked == 4
    assert statistics.running_mean.abs().max() > 0
    x = torch.randn(1, 3, 40, 50)
    with torch.no_grad():
        expected = task.eval()(x)
    saved = torch.load(tmp_path / "some.ckpt", weights_only=True)["state_dict"]
    assert "backbone.decode_head.decoder.convolution.1.running_var" in saved
    assert "backbone.decode_head.auxiliary_heads.0.1.convolution.1.num_batches_tracked" in saved
    assert not any(name.startswith("backbone.") and ".base." in name for name in saved)
    resumed = segmenters.new_task(kind, **settings)
    segmenters.trainer(tmp_path, max_epochs=2).fit(
        resumed, segmenters.train_batches(), ckpt_path=tmp_path / "some.ckpt"
    )
    assert resumed.backbone.decode_head.decoder.convolution[1].num_batches_tracked == 8
    path = tmp_path / "adapter.safetensors"
    save_adapter(task.backbone, path, task.stored, task.task_record(), task.architecture.record())
    served = segmenters.new_task(kind, weights=str(path), **settings)
    with torch.no_grad():
        torch.testing.assert_close(served.eval()(x), expected)
        merge(served.backbone)
        torch.testing.assert_close(served(x), expected, rtol=1e-4, atol=1e-4)


def test_the_head_trains_and_the_rest_is_in_evaluation_if_so_wanted(tmp_path: Path) -> None:
    task = segmenters.new_task(head="naive", backbone_mode="eval")
    segmenters.trainer(tmp_path).fit(task, segmenters.train_batches())
    head = task.backbone.decode_head
    assert all(module.training for module in head.modules())
    assert not task.backbone.blocks[0].training
    assert any(isinstance(module, nn.Dropout2d) for module in head.modules())


def test_a_synchronised_batch_norm_keeps_its_names() -> None:
    """What `--trainer.sync_batchnorm true` makes of the head, UPerNet's own lists of layers too."""
    task = segmenters.new_task(head="upernet", auxiliary_layers=[1]).eval()
    names, kept, x = set(task.backbone.state_dict()), checkpoint.kept_names(task), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = task(x)
        task.backbone = nn.SyncBatchNorm.convert_sync_batchnorm(task.backbone)
        torch.testing.assert_close(task(x), expected)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in task.backbone.modules())
    assert set(task.backbone.state_dict()) == names
    assert checkpoint.kept_names(task) == kept


def test_the_papers_recipe_folds_with_trained_biases(tmp_path: Path) -> None:
    """RepAdapter with every bias trained, those of adapted layers too (arXiv 2302.08106, its segmentation code)."""
    task = segmenters.new_task(head="naive", train_parameters=[".*bias"])
    names = task.trained_further
    assert "blocks.0.attn.qkv.bias" in names
    assert "patch_embed.proj.bias" in names
    segmenters.trainer(tmp_path).fit(task, segmenters.train_batches())
    segmenters.trained_noise(task.backbone)
    task.eval()
    x = torch.randn(1, 3, 40, 50)
    path = tmp_path / "adapter.safetensors"
    save_adapter(task.backbone, path, task.stored, task.task_record(), task.architecture.record())
    served = segmenters.new_task(head="naive", weights=str(path), train_parameters=[".*bias"]).eval()
    with torch.no_grad():
        expected = task(x)
        torch.testing.assert_close(served(x), expected)
        merge(task.backbone)
        torch.testing.assert_close(task(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "method", [RepAdapter(hidden_dim=4), BitFit(), FullFineTuning()], ids=lambda m: type(m).__name__
)
@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_every_parameter_that_trains_gets_a_gradient(kind: str, method: Any, tmp_path: Path) -> None:
    """As processes need that reduce gradients together."""
    task = segmenters.new_task(kind, method=method, auxiliary_layers=[0], head="upernet")
    task.log = lambda *_, **__: None  # type: ignore[method-assign]
    task.training_step(next(iter(segmenters.train_batches())), 0).backward()
    lacking = [name for name, p in task.named_parameters() if p.requires_grad and p.grad is None]
    assert not lacking


def test_scores_over_lists_are_those_of_each_image(tmp_path: Path) -> None:
    task = segmenters.new_task(classes=tuple("abcde"), num_classes=None).eval()
    segmenters.trained_noise(task.backbone)
    counts = torch.zeros(5, 5, dtype=torch.int64)
    total, pixels = 0.0, 0
    for images, masks in segmenters.eval_batches():
        for image, mask in zip(images, masks, strict=True):
            with torch.no_grad():
                scores = F.interpolate(task(image[None]), size=mask.shape, mode="bilinear")
            known = mask != IGNORED
            for true, found in zip(mask[known].tolist(), scores[0].argmax(0)[known].tolist(), strict=True):
                counts[true, found] += 1
            total += float(F.cross_entropy(scores, mask[None], ignore_index=IGNORED, reduction="sum"))
            pixels += int(known.sum())
    expected = ClassScores.of(counts)
    run = segmenters.trainer(tmp_path)
    run.test(task, segmenters.eval_batches(), verbose=False)
    found = {name: float(value) for name, value in run.callback_metrics.items()}
    assert found["test/n_scored"] == 5
    assert found["test/miou"] == pytest.approx(expected.miou, rel=1e-6)
    assert found["test/mean_accuracy"] == pytest.approx(expected.mean_accuracy, rel=1e-6)
    assert found["test/pixel_accuracy"] == pytest.approx(expected.pixel_accuracy, rel=1e-6)
    assert found["test/loss"] == pytest.approx(total / pixels, rel=1e-5)
    for name, iou in zip("abcde", expected.iou.tolist(), strict=True):
        assert found.get(f"test/iou/{name}", float("nan")) == pytest.approx(iou, rel=1e-6, nan_ok=True)
    run.validate(task, segmenters.eval_batches(), verbose=False)
    assert float(run.callback_metrics["val/miou"]) == pytest.approx(expected.miou, rel=1e-6)


@pytest.mark.parametrize("inference", ["whole", "slide"])
@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_half_precision_scores_at_scales(kind: str, inference: Any, tmp_path: Path) -> None:
    found = []
    for precision in ("32-true", "bf16-true"):
        task = segmenters.new_task(kind, inference=inference, scales=(0.5, 1.0, 1.5), flip=True)
        segmenters.trained_noise(task.backbone)
        run = segmenters.trainer(tmp_path, precision=precision)
        run.test(task, segmenters.eval_batches(), verbose=False)
        found.append(float(run.callback_metrics["test/loss"]))
    assert found[1] == pytest.approx(found[0], rel=0.02)


def test_predictions_have_the_sizes_asked_for() -> None:
    task = segmenters.new_task().eval()
    images = [torch.randn(3, 32, 32), torch.randn(3, 20, 40)]
    with torch.no_grad():
        found = task.predict_step((images, torch.tensor([4, 9]), [(64, 70), (20, 33)]), 0)
        scores = list(task.scores(images, [(64, 70), (20, 33)]))
    assert [index for index, _ in found] == [4, 9]
    for (_, mask), expected in zip(found, scores, strict=True):
        assert mask.dtype == torch.uint8
        assert torch.equal(mask.long(), expected.argmax(0))


def test_a_certificates_inputs_are_one_window_an_image() -> None:
    task = segmenters.new_task(inference="slide", window=(24, 40))
    images = [torch.randn(3, 30, 60), torch.randn(3, 10, 40)]
    found = task.inputs_of((images, None))
    assert found.shape == (2, 3, 24, 40)
    assert torch.equal(found[0], images[0][:, 3:27, 10:50])
    assert torch.equal(found[1, :, :10], images[1])
    assert found[1, :, 10:].abs().max() == 0
    assert segmenters.new_task().inputs_of((images, None)).shape == (2, 3, 32, 32)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"dice_weight": -1.0}, r"model\.dice_weight"),
        ({"auxiliary_weight": float("nan")}, r"model\.auxiliary_weight"),
        ({"inference": "slide", "window": (8, 8), "stride": (16, 16)}, r"model\.stride"),
        ({"scales": []}, r"model\.scales"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        segmenters.new_task(**settings)


def test_windows_are_of_the_backbones_size_where_none_is_given() -> None:
    assert segmenters.new_task(inference="slide").inference.window == (32, 32)
    assert isinstance(segmenters.new_task(), SegmentationTask)
    assert segmenters.new_task().inference.window is None


@pytest.mark.slow
def test_two_processes_train_and_score_as_one(tmp_path: Path) -> None:
    segmenters.write_scenes(tmp_path / "data", train=8, val=5, test=7)
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: {class_path: SegmentationTask, init_args: {backbone: vit_tiny_patch16_224, pretrained: false, "
        "backbone_args: {img_size: 32, patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}, head: naive, "
        "head_channels: 8, head_dropout: 0, auxiliary_layers: [0], warmup_epochs: 0, "
        "method: {class_path: RepAdapter, init_args: {hidden_dim: 4, dropout: 0}}}}\n"
        f"data: {{class_path: SegmentationFolderData, init_args: {{root: {tmp_path / 'data'}, num_classes: 5, "
        "test: [images/test, masks/test], image_size: 32}}\n"
        "trainer: {max_epochs: 2, accelerator: cpu, enable_progress_bar: false}\n"
    )
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]

    def run(stage: str, name: str, *options: str) -> dict[str, float]:
        root = ["--trainer.default_root_dir", str(tmp_path / name)]
        program = [sys.executable, "-m", "lightning_petl", stage, "--config", str(config), *root, *options]
        subprocess.run(program, check=True, timeout=300, cwd=ROOT)
        found: dict[str, float] = json.loads((tmp_path / name / "results.json").read_text())
        return found

    run("fit", "one", "--data.batch_size", "4", "--trainer.devices", "1")
    weights = ["--model.weights", str(tmp_path / "one/merged.safetensors"), "--data.batch_size", "2"]
    one, both = run("test", "test1", *weights), run("test", "test2", *weights, *two)
    assert one["n_scored"] == both["n_scored"] == 7
    scores = {name: value for name, value in one.items() if name.startswith("test/") and name != "test/loss"}
    assert len(scores) >= 6
    assert {name: both[name] for name in scores} == scores
    assert both["test/loss"] == pytest.approx(one["test/loss"], rel=1e-5)
    assert run("fit", "two", "--data.batch_size", "2", *two)["n_scored"] == 5
