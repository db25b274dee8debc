"""The commands `export` and `import`: from an adapter file to stock PEFT and back, on the shipped backbone."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import peft
import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_petl import ARC, SSF, LoRA, Method, RepAdapter, backbones, cli, inject, load_adapter, save_adapter
from lightning_petl import trainable as trainable_parameters
from lightning_petl.demo.pretrain import BACKBONE, BACKBONE_ARGS
from lightning_petl.peft_format import CONFIG, WEIGHTS
from lightning_petl.tensorfile import read_header
from lightning_petl.testing import add_noise

SHIPPED = "lightning_petl:demo/vit_digits.safetensors"
CLASSES = 3
SETTINGS = {key: list(value) if isinstance(value, tuple) else value for key, value in BACKBONE_ARGS.items()}
SETTINGS.pop("num_classes", None)


def plain(num_classes: int = CLASSES) -> nn.Module:
    """The shipped backbone, with another head each time."""
    return backbones.create(BACKBONE, SETTINGS, num_classes, SHIPPED).eval()


def output(model: nn.Module) -> Tensor:
    size = backbones.input_config(plain()).image_size
    with torch.no_grad():
        found: Tensor = model.eval()(torch.randn(4, 3, *size, generator=torch.Generator().manual_seed(0)))
    return found


def adapter_file(method: Method, path: Path) -> Tensor:
    """Writes an adapter file as a run does; returns the model's scores."""
    model = inject(plain(), method)
    add_noise((*trainable_parameters(model).values(), *model.get_classifier().parameters()), std=0.2, seed=5)
    record = {"name": BACKBONE, "arguments": SETTINGS | {"num_classes": CLASSES}}
    save_adapter(model, path, ("head",), task={"classes": ["a", "b", "c"]}, backbone=record)
    return output(model)


@pytest.mark.parametrize("method", [RepAdapter(), ARC(rank=8), LoRA(alpha=16, bias=True)], ids=repr)
def test_there_and_back_again(method: Method, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = adapter_file(method, tmp_path / "adapter.safetensors")
    source, folder, back = (str(tmp_path / name) for name in ("adapter.safetensors", "peft", "back.safetensors"))
    assert cli.run(["export", source, "--to", "peft", "--backbone", SHIPPED, "--out", folder]) == 0
    assert "head stored whole" in capsys.readouterr().out
    readme = (tmp_path / "peft/README.md").read_text()
    assert all(text in readme for text in (BACKBONE, '"classes": ["a", "b", "c"]', str(read_header(source)["digest"])))

    torch.manual_seed(1)
    model = timm.create_model(BACKBONE, num_classes=CLASSES, **SETTINGS)
    backbones.timm_models.load_weights(model, backbones.timm_models.weights_file(SHIPPED))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        theirs = peft.PeftModel.from_pretrained(model, folder)
    torch.testing.assert_close(output(theirs), expected, rtol=0, atol=2e-5)

    settings = ["--backbone", BACKBONE, "--weights", SHIPPED, "--backbone-args", json.dumps(SETTINGS)]
    assert cli.run(["import", folder, "--from", "peft", *settings, "--out", back]) == 0
    assert f"a head of {CLASSES} outputs" in capsys.readouterr().out
    torch.testing.assert_close(output(load_adapter(plain(), back)), expected, rtol=0, atol=2e-5)
    assert read_header(back)["backbone"]["arguments"]["num_classes"] == CLASSES
    # The header says how to build the backbone, so that other commands take the file.
    merged = str(tmp_path / "merged/merged.safetensors")
    assert cli.run(["merge", back, "--backbone", SHIPPED, "--out", merged]) == 0
    assert cli.run(["verify", back, merged]) == 0


def test_an_adapter_of_peft_without_a_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = peft.get_peft_model(plain(0), peft.LoraConfig(r=4, target_modules=["qkv", "fc1"]))
    add_noise([parameter for parameter in model.parameters() if parameter.requires_grad], std=0.2)
    model.save_pretrained(tmp_path / "peft")
    settings = ["--backbone", BACKBONE, "--weights", SHIPPED, "--backbone-args", json.dumps(SETTINGS)]
    out = tmp_path / "adapter.safetensors"
    assert cli.run(["import", str(tmp_path / "peft"), "--from", "peft", *settings, "--out", str(out)]) == 0
    assert "no head" in capsys.readouterr().out
    torch.testing.assert_close(output(load_adapter(plain(0), out)), output(model), rtol=0, atol=2e-5)


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.run(arguments) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("lightning-petl: error: ")
    return lines[-1]


def test_what_cannot_be_exported_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter_file(SSF(), tmp_path / "ssf.safetensors")
    ending = ["--backbone", SHIPPED, "--out", str(tmp_path / "peft")]
    assert "cannot hold SSF" in refusal(["export", str(tmp_path / "ssf.safetensors"), "--to", "peft", *ending], capsys)
    assert "no such file" in refusal(["export", str(tmp_path / "none.safetensors"), "--to", "peft", *ending], capsys)
    assert "onnx" in refusal(["export", str(tmp_path / "ssf.safetensors"), "--to", "onnx", *ending], capsys)
    assert not (tmp_path / "peft").exists()


def test_what_cannot_be_imported_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter_file(LoRA(), tmp_path / "lora.safetensors")
    folder = str(tmp_path / "peft")
    start = ["export", str(tmp_path / "lora.safetensors"), "--to", "peft"]
    assert cli.run([*start, "--backbone", SHIPPED, "--out", folder]) == 0
    settings = ["--from", "peft", "--weights", SHIPPED, "--out", str(tmp_path / "out.safetensors")]
    named = [*settings, "--backbone", BACKBONE]
    arguments = ["--backbone-args", json.dumps(SETTINGS)]
    assert "no JSON" in refusal(["import", folder, *named, "--backbone-args", "{"], capsys)
    assert "no JSON object" in refusal(["import", folder, *named, "--backbone-args", "[]"], capsys)
    assert "did you mean" in refusal(["import", folder, *settings, "--backbone", "vit_tinny_patch16_224"], capsys)
    assert CONFIG in refusal(["import", str(tmp_path / "nowhere"), *named, *arguments], capsys)
    config = json.loads((tmp_path / "peft" / CONFIG).read_text())
    (tmp_path / "peft" / CONFIG).write_text(json.dumps(config | {"use_dora": True}))
    assert "use_dora" in refusal(["import", folder, *named, *arguments], capsys)
    (tmp_path / "peft" / CONFIG).write_text(json.dumps(config))
    (tmp_path / "peft" / WEIGHTS).write_bytes((tmp_path / "peft" / WEIGHTS).read_bytes()[:-4])
    assert "damaged" in refusal(["import", folder, *named, *arguments], capsys)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("command", ["export", "import"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([command, "--help"]) == 0
    assert "--backbone" in capsys.readouterr().out
