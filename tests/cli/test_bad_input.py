"""What a user gets wrong is told in one last line, with the field or the file and line, before anything slow starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning_utilities.core.imports import RequirementCache
from PIL import Image
from pytorch_lightning.loggers import CSVLogger

from lightning_petl import cli
from lightning_petl.backbones import timm_models

ROOT = Path(__file__).parents[2]
CONFIG = ["--config", str(ROOT / "configs/quickstart.yaml"), "--trainer.enable_progress_bar", "false"]
PREFIX = "lightning-petl: error: "


class NoModel:
    """Stands for `timm_models.create`, and remembers whether a command got as far as building a model."""

    def __init__(self) -> None:
        self.called = False

    def __call__(self, *args: object, **kwargs: object) -> None:
        self.called = True
        raise RuntimeError("a model was to be built")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> NoModel:
    stand_in = NoModel()
    monkeypatch.setattr(timm_models, "create", stand_in)
    return stand_in


def last_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The last line of a command that must fail."""
    assert cli.run(arguments) != 0
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert last.startswith(PREFIX)
    assert "Traceback" not in captured.err
    return last.removeprefix(PREFIX)


def fit(folder: Path, *options: str) -> list[str]:
    return ["fit", *CONFIG, "--trainer.max_epochs", "1", "--trainer.default_root_dir", str(folder), *options]


def write_tree(root: Path, classes: int = 5, images: int = 4) -> Path:
    for split in ("train", "val", "test"):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(images):
                Image.new("RGB", (32, 32), (40 * label, 20 * index, 100)).save(folder / f"{index}.png")
    return root


FOLDERS = ("--data", "ImageFolderData", "--data.root")

OPTIONS = {
    "unknown method": (["--model.method", "RepAdaptr"], ["unknown method 'RepAdaptr'", "did you mean RepAdapter?"]),
    "unknown method, =": (["--model.method=RepAdaptr"], ["unknown method 'RepAdaptr'", "did you mean RepAdapter?"]),
    "unknown method, path": (["--model.method", "foo.Bar"], ["unknown method", "foo", "installed: "]),
    "no method": (["--model.method", "torch.nn.Linear"], ["torch.nn.Linear is no Method [model.method]"]),
    "unknown task": (["--model", "ClassificationTsk"], ["[model]", "did you mean ClassificationTask"]),
    "unknown data": (["--data", "ImageFolderDat"], ["[data]", "did you mean ImageFolderData?"]),
    "unknown optimizer": (["--model.optimizer", "AdmW"], ["[model.optimizer]", "AdamW"]),
    "typo in a group": (["--modle.method", "RepAdapter"], ["modle.method", "did you mean model.method?"]),
    "typo in a model's option": (["--model.metod", "RepAdapter"], ["[model.metod]", "did you mean method?"]),
    "typo in a method's option": (["--model.method.hiden_dim", "4"], ["hiden_dim", "did you mean hidden_dim?"]),
    "typo in an optimizer's option": (["--model.optimizer.lrr", "1"], ["[model.optimizer.lrr]", "did you mean lr?"]),
    "typo in a trainer's option": (["--trainer.max_epochz", "3"], ["trainer.max_epochz", "trainer.max_epochs"]),
    "abbreviation": (["--trainer.max_epoch", "3"], ["unknown option 'trainer.max_epoch'", "trainer.max_epochs"]),
    "an option of other data": (["--data.rot", "x"], ["[data.rot]", "known here: batch_size, classes"]),
    "an option where there are none": (
        ["--model.method", "LinearProbe", "--model.method.scale", "4"],
        ["unknown option 'scale' [model.method.scale]", "no options here"],
    ),
    "lone word": (["foo"], ["unexpected 'foo'"]),
    "no value": (["--config"], ["[config]", "expected one argument"]),
    "text for an int": (["--model.method.hidden_dim", "four"], ["four is not of type int [model.method.hidden_dim]"]),
    "text for a float": (["--model.optimizer.lr", "abc"], ["abc is not of type float [model.optimizer.lr]"]),
    "text for int or null": (["--trainer.max_epochs", "x"], ["x is not of type int or null [trainer.max_epochs]"]),
    "float for an int": (["--model.warmup_epochs", "1.5"], ["1.5 is not of type int [model.warmup_epochs]"]),
    "no choice": (["--model.backbone_mode", "foo"], ["foo is not one of 'train', 'eval', 'bn_eval'"]),
    "no number of epochs": (["--trainer.max_epochs", "0"], ["[trainer.max_epochs]", "give 1 or more"]),
    "unknown accelerator": (["--trainer.accelerator", "gpuu"], ["gpuu", "[trainer.accelerator]"]),
    "unknown strategy": (["--trainer.strategy", "foo"], ["foo", "[trainer.strategy]"]),
    "a share above all": (["--trainer.limit_val_batches", "1.5"], ["limit_val_batches", "[trainer.limit_val_batches]"]),
    "no checkpoint": (["--ckpt_path", "no.ckpt"], ["no checkpoint no.ckpt [ckpt_path]"]),
    "run folder": (["--trainer.default_root_dir", "/proc/nowhere"], ["run folder cannot be written", "/proc/nowhere"]),
    "no images": ([*FOLDERS, "no/such/folder"], ["no/such/folder", "[data.train]"]),
    "no root": (["--data", "ImageFolderData"], ["required and not given: root [data.root]", "--config"]),
    "no list": (
        ["--data", "ImageListData", "--data.root", ".", "--data.train_list", "no.txt"],
        ["no.txt", "[data.train_list]"],
    ),
    "no configuration": (["--config", "no/such.yaml"], ["does not exist [no/such.yaml]"]),
    "a folder for a configuration": (["--config", str(ROOT)], [f"not a file [{ROOT}]"]),
}


@pytest.mark.parametrize(("options", "told"), OPTIONS.values(), ids=list(OPTIONS))
def test_wrong_options(
    options: list[str], told: list[str], tmp_path: Path, no_model: NoModel, capsys: pytest.CaptureFixture[str]
) -> None:
    last = last_line(fit(tmp_path, *options), capsys)
    assert all(text in last for text in told), last
    assert not no_model.called


def test_the_stand_in_is_met_without_a_fault(
    tmp_path: Path, no_model: NoModel, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the test above would hold for commands that build their model some other way."""
    assert "a model was to be built" in last_line(fit(tmp_path), capsys)
    assert no_model.called


MODEL = {
    "unknown backbone": (["--model.backbone", "vit_tny_patch16_224"], ["[model.backbone", "vit_tiny_patch16_224"]),
    "unknown tag": (["--model.backbone", "vit_base_patch16_224.orig_in21"], ["vit_base_patch16_224.orig_in21k"]),
    "unknown argument": (["--model.backbone_args", '{"embed_dimm": 3}'], ["embed_dimm", "[model.backbone_args"]),
    "no file of weights": (["--model.pretrained", "no.safetensors"], ["no.safetensors", "[model.pretrained"]),
    "groups": (["--model.method.hidden_dim", "7"], ["[model.method.groups", "groups divides hidden_dim"]),
    "class count": (["--model.num_classes", "7"], ["num_classes is 7, the data has 5 [model.num_classes]"]),
    "batch size": (["--data.batch_size", "0"], ["batch_size is 0 [data.batch_size]"]),
    "monitor": (["--checkpoint.monitor", "val/ac"], ["[checkpoint.monitor]", "did you mean val/acc1?"]),
}


@pytest.mark.parametrize(("options", "told"), MODEL.values(), ids=list(MODEL))
def test_wrong_values(options: list[str], told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = last_line(
        fit(
            tmp_path, *options, *([] if "--model.method.hidden_dim" not in options else ["--model.method.groups", "2"])
        ),
        capsys,
    )
    assert all(text in last for text in told), last
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not list(tmp_path.rglob("*.safetensors"))


YAML = {
    "open bracket": ("model:\n  init_args:\n    backbone: [unclosed\ntrainer: {}\n", 4, ["no YAML", "line 3"]),
    "indentation": ("model:\n  class_path: ClassificationTask\n   init_args: {}\n", 3, ["no YAML"]),
    "tab": ("model:\n\tclass_path: ClassificationTask\n", 2, ["no YAML", "'\\t'"]),
    "list": ("- a\n- b\n", 1, ["no mapping"]),
    "twice": ("trainer:\n  max_epochs: 1\n  max_epochs: 2\n", 3, ["max_epochs is set twice"]),
    "unknown group": ("\nmodl:\n  class_path: ClassificationTask\n", 2, ["'modl'", "did you mean model?"]),
    "unknown option": ("model:\n  init_args:\n    bakbone: x\n", 3, ["[model.bakbone,", "did you mean backbone"]),
    "unknown option of a method": (
        "model:\n  init_args:\n    method:\n      class_path: RepAdapter\n      init_args: {scal: 2}\n",
        5,
        ["[model.method.scal,", "did you mean scale?"],
    ),
    "wrong type in a method": (
        "model:\n  init_args:\n    method:\n      class_path: RepAdapter\n      init_args: {scale: big}\n",
        5,
        ["big is not of type float [model.method.scale,"],
    ),
    "wrong type": ("trainer:\n  max_epochs: many\n", 2, ["many is not of type int or null [trainer.max_epochs,"]),
    "unknown method": (
        "model:\n  init_args:\n    method:\n      class_path: RepAdaptr\n",
        4,
        ["did you mean RepAdapter?"],
    ),
    "unknown data": ("data:\n  class_path: ImageFolderDat\n", 2, ["[data,", "did you mean ImageFolderData?"]),
    "unknown callback": (
        "trainer:\n  callbacks:\n  - class_path: EarlyStoping\n",
        3,
        ["[trainer.callbacks,", "EarlyStopping"],
    ),
    "unknown module": ("data:\n  class_path: no.such.module.Klass\n", 2, ["no.such.module.Klass"]),
    "value that a class refuses": (
        "model:\n  init_args:\n    method:\n      class_path: RepAdapter\n      init_args:\n        groups: 3\n",
        6,
        ["[model.method.groups,", "divides"],
    ),
    "epochs": ("trainer:\n  max_epochs: -1\n", 2, ["max_epochs is -1 [trainer.max_epochs,"]),
}


@pytest.mark.parametrize(("text", "line", "told"), YAML.values(), ids=list(YAML))
def test_a_fault_in_a_file_is_named_with_its_line(
    text: str, line: int, told: list[str], tmp_path: Path, no_model: NoModel, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    folder = ["--trainer.default_root_dir", str(tmp_path / "run")]
    last = last_line(["fit", *CONFIG, *folder, "--config", str(file)], capsys)
    assert f"{file}:{line}]" in last
    assert all(text in last for text in told), last
    assert not no_model.called


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "is empty"), (b"# nothing but a comment\n", "is empty"), (b"\xff\xfe\x00trainer", "not UTF-8")],
)
def test_a_file_that_holds_nothing(
    content: bytes, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    last = last_line(fit(tmp_path / "run", "--config", str(file)), capsys)
    assert told in last
    assert f"[{file}]" in last


BOARD = "class_path: TensorBoardLogger, init_args: {save_dir: .}"
BOARDS = {
    "one": (f"trainer:\n  logger: {{{BOARD}}}\n", 2),
    "in a list": (
        f"trainer:\n  logger:\n  - {{class_path: CSVLogger, init_args: {{save_dir: .}}}}\n  - {{{BOARD}}}\n",
        4,
    ),
}


@pytest.mark.parametrize(("text", "line"), BOARDS.values(), ids=list(BOARDS))
def test_a_logger_whose_package_is_missing_says_what_to_install(
    text: str, line: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(f"lightning_fabric.loggers.tensorboard.{name}", RequirementCache("no-such-board"))
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    last = last_line(fit(tmp_path / "run", "--config", str(file)), capsys)
    assert last.startswith("TensorBoardLogger cannot be made: Neither `tensorboard` nor `tensorboardX` is available.")
    assert last.endswith(f"[trainer.logger, {file}:{line}] - pip install 'lightning-petl[tensorboard]'")


def test_the_reason_is_told_why_a_class_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = ["--trainer.logger", f"{__name__}.Unusable"]
    last = last_line(fit(tmp_path, *logger), capsys)
    assert last.startswith("AttributeError: it has no such thing - set LIGHTNING_PETL_DEBUG=1")
    file = tmp_path / "mine.yaml"
    file.write_text(f"trainer: {{logger: [{{class_path: {__name__}.Unusable}}]}}\n")
    last = last_line(fit(tmp_path, "--config", str(file)), capsys)
    assert last == f"Unusable cannot be made: it has no such thing [{__name__}.Unusable]"


class Unusable(CSVLogger):
    """A logger that fails where it is made."""

    def __init__(self) -> None:
        raise AttributeError("it has no such thing")


def test_of_two_files_the_one_with_the_fault_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("first", "many"), ("second", "3")):
        (tmp_path / f"{name}.yaml").write_text(f"trainer:\n  max_epochs: {value}\n")
    files = [option for name in ("first", "second") for option in ("--config", str(tmp_path / f"{name}.yaml"))]
    last = last_line(["fit", *CONFIG, *files, "--trainer.default_root_dir", str(tmp_path / "run")], capsys)
    assert f"{tmp_path / 'first.yaml'}:2]" in last


def test_a_file_is_not_blamed_for_what_the_command_line_overrides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model:\n  init_args:\n    backbone: vit_small_patch16_224\n")
    last = last_line(fit(tmp_path / "run", "--config", str(file), "--model.backbone", "vit_tny_patch16_224"), capsys)
    assert "[model.backbone]" in last
    last = last_line(fit(tmp_path / "run", "--model.init_args.backbone=vit_tny_patch16_224"), capsys)
    assert "[model.backbone]" in last


def test_a_file_for_one_group_is_read_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "trainer.yaml"
    file.write_text("accelerator: cpu\nmax_epochs: many\n")
    assert f"[trainer.max_epochs, {file}:2]" in last_line(fit(tmp_path / "run", "--trainer", str(file)), capsys)


def test_folders_without_images_are_named(
    tmp_path: Path, no_model: NoModel, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_tree(tmp_path / "data")
    for file in (root / "train/class3").iterdir():
        file.unlink()
    last = last_line(fit(tmp_path / "run", *FOLDERS, str(root)), capsys)
    assert f"{root / 'train'} have no image: class3" in last
    (root / "train/class3").rmdir()
    last = last_line(fit(tmp_path / "run", *FOLDERS, str(root)), capsys)
    assert "different classes" in last
    assert "class3" in last
    assert not no_model.called


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_image_that_cannot_be_decoded_is_named(
    split: str, workers: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_tree(tmp_path / "data")
    bad = root / split / "class1/2.png"
    bad.write_bytes(bad.read_bytes()[:60])
    last = last_line(fit(tmp_path / "run", *FOLDERS, str(root), "--data.num_workers", workers), capsys)
    assert f"[{bad}, sample 6 of {split}]" in last
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_other_data_than_the_head_is_for(tmp_path: Path, no_model: NoModel, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_tree(tmp_path / "data", classes=2)
    last = last_line(fit(tmp_path / "run", *FOLDERS, str(root), "--model.num_classes", "5"), capsys)
    assert "num_classes is 5, the data has 2 [model.num_classes]" in last
    assert not no_model.called


def test_a_damaged_checkpoint_is_refused_at_once(
    tmp_path: Path, no_model: NoModel, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(1000)}}, whole)
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(whole.read_bytes()[:-100])
    last = last_line(fit(tmp_path / "run", "--ckpt_path", str(cut)), capsys)
    assert f"[ckpt_path: {cut}]" in last
    assert not no_model.called


def test_a_test_of_nothing_trained_is_told(tmp_path: Path) -> None:
    folder = ["--trainer.default_root_dir", str(tmp_path)]
    with pytest.warns(UserWarning, match="without model.weights and ckpt_path"):
        assert cli.run(["test", *CONFIG, *folder]) == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fitt"], ["unknown command 'fitt'", "did you mean fit?"]),
        (["fit"], ["required and not given: backbone, method [model]", "--config"]),
        (["methods", "--jsn"], ["unknown option 'jsn'", "did you mean json?"]),
        (["methods", "--che"], ["unknown option 'che'", "did you mean check?"]),
        (["inspect"], ["required and not given: file"]),
        (["inspect", "no.safetensors"], ["no such file [no.safetensors]"]),
        (["verify", "no.safetensors"], ["no such file [no.safetensors]"]),
    ],
)
def test_other_commands(
    arguments: list[str],
    told: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    last = last_line(arguments, capsys)
    assert all(text in last for text in told), last


def test_a_process_ends_with_the_line_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lightning_petl", *fit(tmp_path, "--trainer.max_epochz", "3")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(PREFIX)


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -m lightning_petl methods --json | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in ("0", "141")  # 0 where all was written before head ended


def test_the_top_level_help_imports_neither_torch_nor_lightning() -> None:
    code = """
import sys
from lightning_petl import cli
assert cli.run(["--help"]) == 0
heavy = {"torch", "pytorch_lightning", "timm", "jsonargparse", "torchvision", "numpy", "yaml"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""
    shown = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True).stdout
    assert all(command in shown for command in cli.TRAINER_COMMANDS | cli.COMMANDS)
