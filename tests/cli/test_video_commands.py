"""Video on the command line: defaults, the number of frames, and a run from files to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from clips import VIT

from lightning_petl import cli
from lightning_petl.cli import trainer
from lightning_petl.cli.trainer import PETLCLI


class _ParsedError(Exception):
    """Ends a command once its settings are known."""


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The settings of a command, once they are checked and before anything is built."""

    def stop(self: PETLCLI, *_: object) -> None:
        raise _ParsedError(self.config[self.subcommand].as_dict())

    def parse(*words: str) -> dict[str, Any]:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(_ParsedError) as stopped:
            trainer.run(["fit", *words])
        found: dict[str, Any] = stopped.value.args[0]
        return found

    monkeypatch.setattr(PETLCLI, "instantiate_classes", stop)
    return parse


MODEL = ("--model", "VideoClassificationTask", "--model.backbone", "videomae", "--model.method", "RepAdapter")
DATA = ("--data", "SomethingSomethingV2Data", "--data.root", "somewhere")


def test_a_data_module_has_its_own_defaults(parsed: Any) -> None:
    """Those of the default module, whose options have the same names, stay with it."""
    found = parsed(*MODEL, *DATA)["data"]["init_args"]
    assert (found["train"], found["val"], found["test"]) == ("train.json", "validation.json", "test.json")
    assert parsed("--model.backbone", "x", "--model.method", "ARC", "--data.root", "y")["data"]["init_args"]["train"]


def test_the_number_of_frames_follows_from_the_data(parsed: Any) -> None:
    assert parsed(*MODEL, *DATA, "--data.frames", "16")["model"]["init_args"]["frames"] == 16
    assert parsed(*MODEL, *DATA, "--data.frames", "4", "--model.frames", "4")["model"]["init_args"]["frames"] == 4
    assert parsed(*MODEL, *DATA)["model"]["init_args"]["frames"] is None


@pytest.mark.parametrize(
    "data", ["VideoListData", "KineticsData", "SomethingSomethingV2Data", "HMDB51Data", "UCF101Data"]
)
def test_sizes_of_frames_have_limits(data: str, parsed: Any) -> None:
    lists = ("--data.train_list", "train.txt") if data == "VideoListData" else ()
    words = (*MODEL, "--data", data, "--data.root", "somewhere", *lists, "--data.limits.max_pixels", "1000")
    found = parsed(*words)["data"]["init_args"]["limits"]
    assert (found["max_pixels"], found["min_side"]) == (1000, 2)


def test_two_numbers_of_frames_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = ("--trainer.default_root_dir", str(tmp_path))
    assert cli.run(["fit", *MODEL, *DATA, "--data.frames", "16", "--model.frames", "8", *folder]) != 0
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "data.frames is 16, and model.frames 8 [model.frames]" in last


@pytest.mark.parametrize("head", ["sum", "Conv"])
def test_heads_are_choices(head: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["fit", *MODEL, *DATA, "--model.head", head]) != 0
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "model.head" in last
    assert head in last


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "videomae"])
def test_fit_leaves_files_that_test_as_it_did(
    backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av")
    from lightning_petl.demo.moving_digits import make

    make(tmp_path / "data", train=32, val=8, test=16)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
    sizes |= {"intermediate_size": 64, "patch_size": 8}
    arguments = sizes if backbone == "videomae" else VIT
    shared = [
        *("--model", "VideoClassificationTask", "--model.backbone", backbone, "--model.method", "RepAdapter"),
        *("--model.backbone_args", json.dumps(arguments), "--model.pretrained", "false", "--model.head", "mean"),
        *("--model.head_args", '{"batch_norm": true}', "--data", "SomethingSomethingV2Data"),
        *("--data.root", str(tmp_path / "data"), "--data.frames", "4", "--data.sampling", "segments"),
        *(
            "--data.temporal_views",
            "2",
            "--data.spatial_views",
            "3",
            "--data.image_size",
            "32",
            "--data.batch_size",
            "8",
        ),
        *("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    ]
    run = tmp_path / "run"
    assert cli.run(["fit", *shared, "--trainer.default_root_dir", str(run)]) == 0
    results = []
    for kind in ("adapter", "merged"):
        folder = tmp_path / kind
        words = ["--model.weights", str(run / f"{kind}.safetensors"), "--trainer.default_root_dir", str(folder)]
        assert cli.run(["test", *shared, *words]) == 0
        results.append(json.loads((folder / "results.json").read_text()))
    first, second = results
    assert first["n_scored"] == second["n_scored"] == first["n_expected"] == 16
    assert first["test/acc1"] == second["test/acc1"]
    assert first["test/loss"] == pytest.approx(second["test/loss"], rel=1e-4)
    assert json.loads((run / "certificate.json").read_text())["model"]["source"] == "validation"
    assert cli.run(["verify", str(run)]) == 0
