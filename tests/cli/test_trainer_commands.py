"""The main job through the real command, on real data: fit, fold, test, resume, and what goes wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from lightning_petl import cli
from lightning_petl.demo.pretrain import BACKBONE, BACKBONE_ARGS
from lightning_petl.tensorfile import read

ROOT = Path(__file__).parents[2]
CONFIG = ["--config", str(ROOT / "configs/quickstart.yaml"), "--trainer.enable_progress_bar", "false"]


def command(stage: str, folder: Path, *options: str) -> None:
    assert cli.run([stage, *CONFIG, "--trainer.default_root_dir", str(folder), *options]) == 0


def results(folder: Path) -> dict[str, float]:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted")
    command("fit", folder, "--trainer.max_epochs", "8")
    return folder


def best(folder: Path) -> Path:
    return next((folder / "checkpoints").glob("best-*.ckpt"))


def test_the_run_folder(fitted: Path) -> None:
    for name in ("config.yaml", "metrics.csv", "adapter.safetensors", "merged.safetensors", "certificate.json"):
        assert (fitted / name).stat().st_size > 0
    found = results(fitted)
    assert found["n_expected"] == found["n_scored"] == 150
    assert found["val/acc1"] > 0.6
    assert found["trainable_parameters"] == 6720 + 5 * 65
    certificate = json.loads((fitted / "certificate.json").read_text())
    assert len(certificate["layers"]) == 8
    assert certificate["float64_error"] < 1e-12
    assert certificate["model"]["deployed"] < 1e-5
    assert certificate["model"]["float64"] < 1e-12
    assert certificate["model"]["source"] == "validation"


def test_test_gives_the_same_metrics_from_each_file(fitted: Path, tmp_path: Path) -> None:
    sources = {
        "checkpoint": ["--ckpt_path", str(best(fitted))],
        "adapter": ["--model.weights", str(fitted / "adapter.safetensors")],
        "merged": ["--model.weights", str(fitted / "merged.safetensors")],
    }
    for name, options in sources.items():
        command("test", tmp_path / name, *options)
    found = {name: results(tmp_path / name) for name in sources}
    assert found["checkpoint"]["n_scored"] == found["checkpoint"]["n_expected"] == 320
    for name in ("adapter", "merged"):
        assert found[name]["test/acc1"] == found["checkpoint"]["test/acc1"]
        assert found[name]["test/loss"] == pytest.approx(found["checkpoint"]["test/loss"], rel=1e-5)


def test_a_merged_file_is_tested_whatever_method_it_came_from(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = ["--model.method", "LinearProbe"]
    command("test", tmp_path / "probe", *probe, "--model.weights", str(fitted / "merged.safetensors"))
    command("test", tmp_path / "own", "--model.weights", str(fitted / "merged.safetensors"))
    assert results(tmp_path / "probe")["test/acc1"] == results(tmp_path / "own")["test/acc1"]
    adapter = ["--model.weights", str(fitted / "adapter.safetensors"), "--trainer.default_root_dir", str(tmp_path)]
    assert cli.run(["test", *CONFIG, *probe, *adapter]) == 1
    assert "method.name" in capsys.readouterr().err.splitlines()[-1]


def test_the_merged_file_is_the_plain_backbone(fitted: Path) -> None:
    code = f"""
import sys
sys.modules["lightning_petl"] = None
import timm
from safetensors.torch import load_file
model = timm.create_model({BACKBONE!r}, **{BACKBONE_ARGS!r})
model.load_state_dict(load_file({str(fitted / "merged.safetensors")!r}), strict=True)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_frozen_tensors_are_the_backbones_own(fitted: Path) -> None:
    _, merged = read(fitted / "merged.safetensors")
    model = timm.create_model(BACKBONE, **BACKBONE_ARGS)
    from lightning_petl.backbones.timm_models import load_weights, weights_file

    load_weights(model, weights_file("lightning_petl:demo/vit_digits.safetensors"))
    same = [name for name, tensor in model.state_dict().items() if torch.equal(tensor, merged[name])]
    changed = {name.rsplit(".", 1)[0].split(".", 2)[-1] for name in merged if name not in same}
    assert changed == {"attn.qkv", "mlp.fc1", "head"}


def test_predict_names_every_test_file(fitted: Path, tmp_path: Path) -> None:
    command("predict", tmp_path, "--model.weights", str(fitted / "merged.safetensors"))
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert lines[0] == "file,class,probability"
    assert len(set(lines[1:])) == 320


def test_inspect_merge_and_verify(fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["inspect", str(fitted / "adapter.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["method"]["name"] == "RepAdapter"
    assert cli.run(["verify", str(fitted)]) == 0
    out = tmp_path / "merged.safetensors"
    weights = "lightning_petl:demo/vit_digits.safetensors"
    assert cli.run(["merge", str(fitted / "adapter.safetensors"), "--backbone", weights, "--out", str(out)]) == 0
    mine, theirs = read(out)[1], read(fitted / "merged.safetensors")[1]
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_merge_into_another_backbone_is_refused(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(fitted / "adapter.safetensors")
    assert (
        cli.run(["merge", file, "--backbone", "deit_tiny_patch16_224", "--out", str(tmp_path / "m.safetensors")]) == 1
    )
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"{file} belongs to vit_tiny_patch16_224, not deit_tiny_patch16_224 [--backbone]" in last
    assert not list(tmp_path.iterdir())


def test_verify_finds_a_flipped_byte(fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "run"
    shutil.copytree(fitted, copy)
    content = bytearray((copy / "merged.safetensors").read_bytes())
    content[-5] ^= 1
    (copy / "merged.safetensors").write_bytes(content)
    assert cli.run(["verify", str(copy)]) == 1
    assert "digest does not match" in capsys.readouterr().err


RANDOM = ["--trainer.max_epochs", "3", "--model.method.dropout", "0.3", "--model.backbone_args.drop_path_rate", "0.2"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit of three epochs of 13 steps, with a checkpoint in the middle of the second."""
    folder = tmp_path_factory.mktemp("whole")
    every = {"every_n_train_steps": "18", "dirpath": str(folder / "steps"), "save_top_k": "-1"}
    options = [word for name, value in every.items() for word in (f"--trainer.callbacks.{name}", value)]
    command("fit", folder, *RANDOM, "--trainer.callbacks+", "ModelCheckpoint", *options)
    return folder


def test_a_fit_resumes_as_if_it_had_not_stopped(whole: Path, tmp_path: Path) -> None:
    """To the bit, with dropout and drop-path, after an epoch and inside one."""
    # Stopped before its end: the cosine is one of three epochs, as max_time or a signal would stop it.
    command("fit", tmp_path / "first", *RANDOM, "--trainer.max_steps", str(2 * 13))
    for name, steps in ((tmp_path / "first/checkpoints/last.ckpt", 26), (whole / "steps/epoch=1-step=18.ckpt", 18)):
        saved = torch.load(name, weights_only=True)
        assert saved["global_step"] == steps
        assert saved["optimizer_states"][0]["state"]
        assert saved["lr_schedulers"]
        resumed = tmp_path / str(steps)
        command("fit", resumed, *RANDOM, "--ckpt_path", str(name))
        expected, found = (
            torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for folder in (whole, resumed)
        )
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_last_checkpoint_and_the_best_where_the_first_epoch_is_the_best(tmp_path: Path) -> None:
    """The last one is of the last epoch, and a fit that goes on in another folder keeps the best that was."""
    worst = ["--checkpoint.monitor", "val/loss", "--checkpoint.mode", "max", *RANDOM]
    command("fit", tmp_path / "first", *worst, "--trainer.max_steps", str(2 * 13))
    saved = torch.load(tmp_path / "first/checkpoints/last.ckpt", weights_only=True)
    assert (saved["epoch"], saved["global_step"]) == (1, 26)
    assert best(tmp_path / "first").name == "best-epoch=0.ckpt"
    command("fit", tmp_path / "second", *worst, "--ckpt_path", str(tmp_path / "first/checkpoints/last.ckpt"))
    saved = torch.load(tmp_path / "second/checkpoints/last.ckpt", weights_only=True)
    assert (saved["epoch"], saved["global_step"]) == (2, 39)
    found = [results(tmp_path / name)["best/val/loss"] for name in ("first", "second")]
    assert found[0] == found[1] > results(tmp_path / "second")["val/loss"]
    one, two = (read(tmp_path / name / "adapter.safetensors")[1] for name in ("first", "second"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert best(tmp_path / "first").is_file()
    command("fit", tmp_path / "whole", *worst)
    whole = torch.load(tmp_path / "whole/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(saved["state_dict"][name], tensor) for name, tensor in whole.items())


def test_a_precision_that_changes_the_frozen_weights_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--trainer.default_root_dir", str(tmp_path), "--trainer.max_epochs", "1"]
    assert cli.run(["fit", *CONFIG, *root, "--trainer.precision", "bf16-true"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "the frozen weights became bfloat16 [trainer.precision] - leave the weights as they are" in last
    command("fit", tmp_path / "mixed", "--trainer.max_epochs", "1", "--trainer.precision", "bf16-mixed")


def test_a_checkpoint_of_another_method_is_refused(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--ckpt_path", str(best(fitted)), "--model.method.scale", "2"]
    assert cli.run(["test", *CONFIG, "--trainer.default_root_dir", str(tmp_path), *options]) == 1
    assert "ckpt_path: method.arguments" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "lightning_petl", "fit", *CONFIG, "--trainer.max_epochs", "3"]
    exact = ["--model.method.dropout", "0", "--trainer.max_epochs", "3"]
    for name, options in {
        "one": ["--data.batch_size", "40"],
        "two": ["--data.batch_size", "20", "--trainer.devices", "2", "--trainer.strategy", "ddp"],
    }.items():
        root = ["--trainer.default_root_dir", str(tmp_path / name)]
        subprocess.run([*program, *exact, *options, *root], check=True, timeout=300, cwd=ROOT)
    one, two = (read(tmp_path / name / "adapter.safetensors")[1] for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-6)
    assert results(tmp_path / "two")["n_scored"] == 150


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model.method", "RepAdaptr"], ["unknown method 'RepAdaptr'", "did you mean RepAdapter?"]),
        (["--model.method.scal", "3"], ["model.method.scal", "did you mean scale?"]),
        (["--model.method.scale", "abc"], ["model.method.scale", "float"]),
        (["--model.method.hidden_dim", "7"], ["groups"]),
        (["--model.backbne", "x"], ["model.backbne", "did you mean backbone"]),
        (["--model.backbone", "vit_tny_patch16_224"], ["unknown backbone", "vit_tiny_patch16_224"]),
        (["--model.num_classes", "7"], ["model.num_classes", "the data has 5"]),
        (["--model.pretrained", "no/such/file.safetensors"], ["model.pretrained"]),
        (["--trainer.max_epochz", "3"], ["trainer.max_epochz", "max_epochs"]),
        (["--trainer.default_root_dir", "/proc/nowhere"], ["run folder cannot be written", "/proc/nowhere"]),
        (["--data", "ImageFolderData", "--data.root", "no/such/folder"], ["no/such/folder"]),
        (["--config", "no/such.yaml"], ["no/such.yaml"]),
    ],
)
def test_bad_input_is_one_last_line(
    options: list[str], told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--trainer.default_root_dir", str(tmp_path), "--trainer.max_epochs", "1"]
    assert cli.run(["fit", *CONFIG, *root, *options]) != 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("lightning-petl: error: ")
    assert all(text in last for text in told), last
    assert not list(tmp_path.rglob("*.ckpt"))


def write_tree(root: Path, classes: int = 2) -> None:
    for split in ("train", "val", "test"):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (32, 32), (60 * label, 20 * index, 100)).save(folder / f"{index}.png")


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path / "data")
    bad = tmp_path / "data/train/class1/2.png"
    bad.write_bytes(bad.read_bytes()[:60])
    data = ["--data", "ImageFolderData", "--data.root", str(tmp_path / "data")]
    workers = ["--data.num_workers", "1", "--data.batch_size", "4"]
    arguments = ["fit", *CONFIG, *data, *workers, "--trainer.default_root_dir", str(tmp_path / "run")]
    assert cli.run(arguments) == 1
    assert str(bad) in capsys.readouterr().err.splitlines()[-1]


def test_a_head_of_another_class_count_is_refused(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tree(tmp_path / "data")
    data = ["--data", "ImageFolderData", "--data.root", str(tmp_path / "data")]
    weights = ["--model.weights", str(fitted / "merged.safetensors"), "--trainer.default_root_dir", str(tmp_path)]
    assert cli.run(["test", *CONFIG, *data, *weights]) == 1
    assert "5 classes, the data 2" in capsys.readouterr().err.splitlines()[-1]


def test_a_single_class_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its loss would be 0, and its accuracy 1."""
    write_tree(tmp_path / "data", classes=1)
    data = ["--data", "ImageFolderData", "--data.root", str(tmp_path / "data")]
    assert cli.run(["fit", *CONFIG, *data, "--trainer.default_root_dir", str(tmp_path / "run")]) == 1
    assert "1 classes leave nothing to tell apart [model.num_classes]" in capsys.readouterr().err.splitlines()[-1]


def test_images_that_the_backbone_does_not_take_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--trainer.default_root_dir", str(tmp_path), "--trainer.max_epochs", "1"]
    assert cli.run(["fit", *CONFIG, *root, "--data.image_size", "48"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "the backbone takes images of 32 x 32, and not of 48 x 48: " in last
    assert "[data.image_size] - leave it out, or set model.backbone_args.img_size" in last
    dynamic = ["--model.backbone_args.dynamic_img_size", "true"]
    command("fit", tmp_path / "dynamic", *dynamic, "--data.image_size", "48", "--trainer.max_epochs", "1")


def test_data_of_another_task_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--trainer.default_root_dir", str(tmp_path)]
    assert cli.run(["fit", *CONFIG, *root, "--model.class_path", "SegmentationTask"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "SegmentationTask takes images with masks, and DigitsData gives images [model.class_path, data.c" in last


def test_frozen_batch_norm_stays_as_it_is(tmp_path: Path) -> None:
    write_tree(tmp_path / "data")
    config = tmp_path / "resnet.yaml"
    config.write_text(
        "model: {class_path: ClassificationTask, init_args: {backbone: resnet18, pretrained: false, warmup_epochs: 0, "
        "method: {class_path: RepAdapter, init_args: {targets: ['layer\\d\\.\\d\\.downsample\\.0']}}}}\n"
        f"data: {{class_path: ImageFolderData, "
        f"init_args: {{root: {tmp_path / 'data'}, image_size: 32, batch_size: 4}}}}\n"
        "trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}\n"
    )
    run = tmp_path / "run"
    assert cli.run(["fit", "--config", str(config), "--trainer.default_root_dir", str(run)]) == 0
    header, adapter = read(run / "adapter.safetensors")
    assert header["extra"] == ["fc.bias", "fc.weight"]
    assert not any("running" in name for name in adapter)
    certificate = json.loads((run / "certificate.json").read_text())
    assert certificate["created"] == [f"layer{n}.0.downsample.0.bias" for n in (2, 3, 4)]


def test_methods_loads_neither_torch_nor_lightning() -> None:
    code = """
import sys
from lightning_petl import cli
assert cli.run(["methods"]) == 0
assert not {"torch", "pytorch_lightning", "timm"} & sys.modules.keys()
"""
    shown = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True).stdout
    assert "RepAdapter" in shown
