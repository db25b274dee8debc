"""Video classification: views are averaged, clips are counted, and what fit leaves tests as the task itself."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F  # noqa: N812
from clips import CLASSES, FRAMES, SIZE, TRANSFORMERS, VIT, clips, new_task
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_petl import ARC, ConfigError, Consolidator, Method, RepAdapter, adapted_layers
from lightning_petl.backbones import FrameClassifier, VideoTransformer
from lightning_petl.callbacks import Reparameterize
from lightning_petl.testing import add_noise

LABELS = torch.tensor([0, 5, 2, 3])


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    settings: dict[str, Any] = {
        "default_root_dir": folder,
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": 1,
        "logger": pl.loggers.CSVLogger(folder, name="", version=""),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(**(settings | options))


def views(*shape: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(clips(*shape), LABELS[: shape[0]]), batch_size=2)


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", *TRANSFORMERS])
def test_the_name_chooses_the_architecture(backbone: str) -> None:
    task = new_task(backbone)
    kind = VideoTransformer if backbone in TRANSFORMERS else FrameClassifier
    assert type(task.architecture) is kind
    assert task(clips(3)).shape == (3, CLASSES)
    assert task.head == ("classifier" if backbone in TRANSFORMERS else "video_head")
    assert all(parameter.requires_grad for parameter in task.backbone.get_submodule(task.head).parameters())
    assert not any(path.startswith(task.head) for path in adapted_layers(task.backbone))


@pytest.mark.parametrize("per_step", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "videomae"])
def test_multi_view_scores_are_an_independent_average(backbone: str, per_step: int, tmp_path: Path) -> None:
    task = new_task(backbone, views_per_step=per_step).eval()
    add_noise(task.backbone.get_submodule(task.head).parameters(), std=3.0)
    inputs = clips(4, 5)
    expected = torch.zeros(4, CLASSES)
    with torch.no_grad():
        for video in range(4):
            for view in range(5):
                expected[video] += task(inputs[video, view][None])[0].softmax(0) / 5
    found, indices = (
        torch.cat(part)
        for part in zip(*trainer(tmp_path).predict(task, views(4, 5)), strict=True)  # type: ignore[arg-type]
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(indices, LABELS)
    logged = trainer(tmp_path).test(task, views(4, 5), verbose=False)[0]
    assert logged["test/n_scored"] == 4
    loss = -expected[range(4), LABELS].log().mean()
    assert logged["test/loss"] == pytest.approx(float(loss), rel=1e-5)
    assert logged["test/acc1"] == pytest.approx(float((expected.argmax(1) == LABELS).float().mean()))
    five = expected.topk(5, dim=1).indices
    assert logged["test/acc5"] == pytest.approx(float((five == LABELS[:, None]).any(1).float().mean()))


def test_probabilities_are_averaged_and_not_scores() -> None:
    """Two views with scores (10, 0) and (-2, 0) tell both means apart."""
    task = new_task(num_classes=2).eval()
    each = torch.tensor([[[10.0, 0.0], [-2.0, 0.0]]])
    task.architecture = Fixed(each[0])  # type: ignore[assignment]
    found = task.scores(torch.zeros(1, 2, FRAMES, 3, SIZE, SIZE)).exp()
    torch.testing.assert_close(found, each.softmax(-1).mean(1))


class Fixed:
    def __init__(self, scores: Tensor) -> None:
        self.scores = scores

    def run(self, model: object, inputs: Tensor) -> Tensor:
        return self.scores[: len(inputs)]


def test_certain_views_lose_no_precision() -> None:
    task = new_task(num_classes=2).eval()
    task.architecture = Fixed(torch.tensor([[200.0, 0.0], [0.0, 200.0], [0.0, 200.0]]))  # type: ignore[assignment]
    found = task.scores(torch.zeros(1, 3, FRAMES, 3, SIZE, SIZE))
    torch.testing.assert_close(found, torch.tensor([[math.log(1 / 3), math.log(2 / 3)]]))


def test_one_step_runs_no_more_views_than_asked_for() -> None:
    task, seen = new_task(views_per_step=2).eval(), []
    task.backbone.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    task.scores(clips(3, 5))
    assert seen == [3 * 2 * FRAMES, 3 * 2 * FRAMES, 3 * FRAMES]


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_frames_of_a_clip_are_mixed_alike(kind: str) -> None:
    """Each clip is constant, and clip i is i: what is mixed in shows, and must be equal in all frames."""
    task = new_task(**{kind: 1.0})
    inputs = torch.arange(1.0, 5).reshape(4, 1, 1, 1, 1).expand(4, FRAMES, 3, SIZE, SIZE).clone()
    torch.manual_seed(5)
    mixed, labels = task.mixed(inputs, torch.arange(4))
    assert type(mixed) is Tensor
    assert mixed.shape == inputs.shape
    assert labels.shape == (4, CLASSES)
    assert not torch.equal(mixed, inputs)
    assert torch.equal(mixed, mixed[:, :1, :1].expand_as(mixed))
    torch.testing.assert_close(labels.sum(1), torch.ones(4))
    share = labels[torch.arange(4), torch.arange(4)]
    expected = share * torch.arange(1.0, 5) + (1 - share) * torch.arange(1.0, 5).roll(1)
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3, 4)), expected)


def test_training_takes_mixed_clips(tmp_path: Path) -> None:
    task = new_task(mixup=0.8, cutmix=1.0, label_smoothing=0.1)
    run = trainer(tmp_path)
    run.fit(task, DataLoader(TensorDataset(clips(4), LABELS), batch_size=2))
    assert math.isfinite(run.callback_metrics["train/loss"])


BATCH_NORM: dict[str, Any] = {"head": "mean", "head_args": {"batch_norm": True}}


@pytest.mark.parametrize(
    ("backbone", "method", "options"),
    [
        ("vit_tiny_patch16_224", RepAdapter(hidden_dim=4), {"head": "conv", "head_args": {"hidden": 16}}),
        ("vit_tiny_patch16_224", Consolidator(), {"head": "attention", "head_args": {"hidden": 16}}),
        ("vit_tiny_patch16_224", ARC(rank=4), BATCH_NORM),
        ("videomae", RepAdapter(hidden_dim=2), BATCH_NORM | {"train_parameters": ["fc_norm.*"]}),
        ("videomae", Consolidator(), {}),
        ("timesformer", ARC(rank=4), {}),
        ("vivit", RepAdapter(hidden_dim=4), BATCH_NORM),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_fit_leaves_tests_as_the_task_itself(
    backbone: str, method: Method, options: dict[str, Any], tmp_path: Path
) -> None:
    task = new_task(backbone, method, **options)
    run = trainer(tmp_path, callbacks=[Reparameterize()])
    run.fit(task, DataLoader(TensorDataset(clips(4), LABELS), batch_size=2))
    moved = dict(task.backbone.named_buffers()).get("video_head.classifier.0.running_mean")
    assert moved is None or float(moved.abs().max()) > 0, "the head's statistics train"
    task.eval()
    inputs = clips(3, 2, seed=9)
    with torch.no_grad():
        expected = task.scores(inputs)
        for name in ("adapter", "merged"):
            weights = str(tmp_path / f"{name}.safetensors")
            again = new_task(backbone, method, **options, weights=weights).eval()
            torch.testing.assert_close(again.scores(inputs), expected, rtol=1e-4, atol=1e-5)
    certificate = json.loads((tmp_path / "certificate.json").read_text())
    assert certificate["model"]["float64"] < 1e-9


def test_training_goes_on_from_a_checkpoint_with_the_heads_statistics(tmp_path: Path) -> None:
    task = new_task(**BATCH_NORM)
    run = trainer(tmp_path)
    data = DataLoader(TensorDataset(clips(4), LABELS), batch_size=2)
    run.fit(task, data)
    run.save_checkpoint(tmp_path / "some.ckpt")
    found = torch.load(tmp_path / "some.ckpt", weights_only=True)["state_dict"]
    name = "backbone.video_head.classifier.0.running_var"
    assert not torch.equal(found[name], torch.ones_like(found[name]))
    fresh = new_task(**BATCH_NORM)
    trainer(tmp_path).validate(fresh, views(4, 1), ckpt_path=tmp_path / "some.ckpt", verbose=False)
    assert torch.equal(fresh.state_dict()[name], found[name])
    more = trainer(tmp_path, max_epochs=2)
    more.fit(fresh, data, ckpt_path=tmp_path / "some.ckpt")
    assert more.global_step == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, r"frames is 0 \[model\.frames\]"),
        ({"views_per_step": 0}, r"model\.views_per_step"),
        ({"head": "max"}, r"no head over frames is called 'max' \[model\.head\]"),
        ({"head": "conv", "head_args": {"hiden": 3}}, r"does not take these arguments: .*hiden.*\[model\.head_args\]"),
        ({"head": "conv", "head_args": {"kernel": 2}}, r"kernel is 2 \[model\.head_args\.kernel\]"),
        ({"head": "attention", "head_args": {"heads": 5}}, r"\[model\.head_args\.heads\]"),
        ({"head_args": {"frames": 3}}, r"frames follows from backbone and data"),
        ({"backbone": "resnet26_none"}, r"unknown backbone"),
        ({"backbone": "videomae", "head": "conv"}, r"no features of frames for conv \[model\.head\]"),
        ({"backbone": "videomae", "head_args": {"batch_norm": True}}, r"\[model\.head_args\].*set model\.head to mean"),
        ({"backbone": "videomae", "frames": 3}, r"3 frames are no whole tubelets of 2 \[model\.frames\]"),
    ],
)
def test_bad_settings_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        new_task(**options)


def test_clips_of_another_length_are_refused_with_both_names(tmp_path: Path) -> None:
    task = new_task()
    with pytest.raises(ConfigError, match=r"5 frames, and the model takes 4 \[data\.frames, model\.frames\]"):
        task(torch.zeros(1, 5, 3, SIZE, SIZE))
    with pytest.raises(ConfigError, match=r"shape \(2, 4, 3, 32, 32\).*batch, views"):
        task.scores(clips(2))
    data = pl.LightningDataModule.from_datasets(test_dataset=TensorDataset(clips(2, 1), LABELS[:2]))
    data.frames = 16
    with pytest.raises(ConfigError, match=r"16 frames, and the model takes 4 \[data\.frames, model\.frames\]"):
        trainer(tmp_path).test(task, data)


DDP = f"""
import sys, torch, pytorch_lightning as pl
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from clips import clips, new_task
from torch.utils.data import DataLoader, Dataset
from lightning_petl.data.samplers import UnpaddedSampler

class Videos(Dataset):
    x = clips(7, 3)
    def __len__(self): return 7
    def __getitem__(self, index): return self.x[index], index % 6

class Data(pl.LightningDataModule):
    frames = 4
    def test_dataloader(self):
        place = self.trainer.distributed_sampler_kwargs or dict(num_replicas=1, rank=0)
        sampler = UnpaddedSampler(Videos(), place["num_replicas"], place["rank"])
        return DataLoader(Videos(), batch_size=2, sampler=sampler)

if __name__ == "__main__":
    devices = int(sys.argv[1])
    task = new_task()
    torch.manual_seed(0)
    torch.nn.init.normal_(task.backbone.video_head.classifier[1].weight, std=3.0)
    run = pl.Trainer(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
                     enable_checkpointing=False, enable_progress_bar=False, use_distributed_sampler=False)
    found = run.test(task, datamodule=Data(), verbose=False)[0]
    if run.is_global_zero:
        print("RESULT", sorted(found.items()))
"""


@pytest.mark.slow
def test_two_processes_score_each_clip_once(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(DDP)
    results = []
    for devices in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "run.py", devices], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True
        )
        results.append(eval(done.stdout.split("RESULT")[1].strip()))
    one, two = map(dict, results)
    assert one["test/n_scored"] == two["test/n_scored"] == 7
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-5), name


def test_the_loss_of_one_view_is_the_cross_entropy() -> None:
    task = new_task().eval()
    inputs = clips(4, 1)
    with torch.no_grad():
        expected = F.cross_entropy(task(inputs[:, 0]), LABELS)
        torch.testing.assert_close(F.cross_entropy(task.scores(inputs), LABELS), expected)


def test_held_out_clips_are_views_one_by_one() -> None:
    task = new_task()
    assert task.inputs_of((clips(2, 3), LABELS[:2])).shape == (6, FRAMES, 3, SIZE, SIZE)
    assert task.inputs_of((clips(2), LABELS[:2])).shape == (2, FRAMES, 3, SIZE, SIZE)
    assert task.architecture.example(task.backbone, 3).shape == (3, FRAMES, 3, SIZE, SIZE)
    assert VIT["img_size"] == SIZE
