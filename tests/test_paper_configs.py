"""The recipes of the papers: every file is complete, has its source and its command, and the real parser takes it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import lightning_petl
from lightning_petl import cli

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "configs" / "paper"

VTAB = {
    "cifar": 100,
    "caltech101": 102,
    "dtd": 47,
    "oxford_flowers102": 102,
    "oxford_iiit_pet": 37,
    "svhn": 10,
    "sun397": 397,
    "patch_camelyon": 2,
    "eurosat": 10,
    "resisc45": 45,
    "diabetic_retinopathy": 5,
    "clevr_count": 8,
    "clevr_dist": 6,
    "dmlab": 6,
    "kitti": 4,
    "dsprites_loc": 16,
    "dsprites_ori": 16,
    "smallnorb_azi": 18,
    "smallnorb_ele": 9,
}
FGVC = {"cub": 200, "nabirds": 555, "flowers": 102, "dogs": 120, "cars": 196}
RECIPES = {
    "repadapter_vtab1k": VTAB,
    "repadapter_attn_vtab1k": VTAB,
    "consolidator_vtab1k": VTAB,
    "consolidator_moco_vtab1k": VTAB,
    "arc_vtab1k": VTAB,
    "arc_swin_vtab1k": VTAB,
    "arc_fgvc": FGVC,
}
ALONE = {"repadapter_ade20k", "repadapter_ssv2", "repadapter_hmdb51"}
"""Recipes of one data set, with tests of their own."""

OVERLAYS = [f"{recipe}/{name}" for recipe, sets in RECIPES.items() for name in sets]

SCALE, DROP, DROPOUT = "method.scale", "method.drop_path", "method.dropout"
LR, DECAY, VIT = "optimizer.lr", "optimizer.weight_decay", "backbone_args.proj_drop_rate"
# Copied by hand from the official codes' files, not from the recipes.
VALUES: tuple[tuple[str, dict[str, float]], ...] = (
    ("repadapter_vtab1k/cifar", {SCALE: 0.1}),
    ("repadapter_vtab1k/svhn", {SCALE: 10}),
    ("repadapter_vtab1k/dsprites_ori", {SCALE: 0.1}),
    ("repadapter_vtab1k/resisc45", {SCALE: 5}),
    ("repadapter_attn_vtab1k/caltech101", {SCALE: 10}),
    ("repadapter_attn_vtab1k/dsprites_ori", {SCALE: 5}),
    ("repadapter_attn_vtab1k/kitti", {SCALE: 1}),
    ("consolidator_vtab1k/cifar", {LR: 0.001, DECAY: 0, DROP: 0.8}),
    ("consolidator_vtab1k/clevr_dist", {LR: 0.0005, DECAY: 0.01, DROP: 0.5}),
    ("consolidator_vtab1k/kitti", {LR: 0.005, DECAY: 0.001, DROP: 0}),
    ("consolidator_vtab1k/smallnorb_ele", {LR: 0.0005, DECAY: 0.1, DROP: 0.2}),
    ("consolidator_moco_vtab1k/patch_camelyon", {LR: 0.002, DECAY: 0.0001, DROP: 0.2}),
    ("consolidator_moco_vtab1k/oxford_iiit_pet", {LR: 0.001, DECAY: 0.1, DROP: 0.8}),
    ("consolidator_moco_vtab1k/smallnorb_ele", {LR: 0.001, DECAY: 0, DROP: 0.5}),
    ("arc_swin_vtab1k/dtd", {LR: 0.005, DECAY: 0.05, DROPOUT: 0.8}),
    ("arc_swin_vtab1k/sun397", {LR: 0.005, DECAY: 0.00005, DROPOUT: 0.1}),
    ("arc_swin_vtab1k/dsprites_ori", {LR: 0.005, DECAY: 0, DROPOUT: 0.5}),
    ("arc_fgvc/nabirds", {LR: 0.0002, DECAY: 0.05, DROPOUT: 0.1, VIT: 0.1}),
    ("arc_fgvc/dogs", {LR: 0.00025, DECAY: 0.05, DROPOUT: 0.1, VIT: 0}),
    ("arc_fgvc/cars", {LR: 0.005, DECAY: 0.05, DROPOUT: 0, VIT: 0.1}),
)


def load(name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((PAPER / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def fields(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a configuration without class_path and init_args: ``model.method.scale`` and its value."""
    for key, value in node.items():
        name = prefix if key == "init_args" else f"{prefix}.{key}".lstrip(".")
        if isinstance(value, Mapping):
            yield from fields(value, name)
        else:
            yield name, value


def parsed(capsys: pytest.CaptureFixture[str], *names: str, options: tuple[str, ...] = ()) -> dict[str, Any]:
    """What the command's parser makes of files, without building anything."""
    capsys.readouterr()
    files = [word for name in names for word in ("--config", str(PAPER / f"{name}.yaml"))]
    assert cli.run(["fit", *files, *options, "--print_config"]) == 0
    return dict(fields(yaml.safe_load(capsys.readouterr().out)))


def test_all_data_sets_of_all_recipes_are_there() -> None:
    found = {path.relative_to(PAPER).with_suffix("").as_posix() for path in PAPER.rglob("*.yaml")}
    assert found == {*RECIPES, *OVERLAYS, *ALONE}
    assert len(VTAB) == 19


@pytest.mark.parametrize("name", [*RECIPES, *OVERLAYS])
def test_head_of_a_file(name: str) -> None:
    lines = (PAPER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    head = [line for line in lines if line.startswith("#")]
    assert lines[: len(head)] == head
    assert max(map(len, lines)) <= 120
    assert head[-1] == "# Result: unmeasured"
    assert any(line.startswith("# Published: ") for line in head)
    text = " ".join(line.removeprefix("#").strip() for line in head)
    assert re.search("official code|arXiv", text)
    recipe = name.partition("/")[0]
    command = re.search(r"lightning-petl fit (.*?) --trainer\.default_root_dir", text.replace("\\ ", ""))
    assert command is not None
    overlay = name if "/" in name else f"{name}/{next(iter(RECIPES[name]))}"
    assert command[1].split() == [
        "--config",
        f"configs/paper/{recipe}.yaml",
        "--config",
        f"configs/paper/{overlay}.yaml",
    ]


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_sets_fields_of_its_recipe(name: str) -> None:
    recipe, _, data_set = name.partition("/")
    overlay, base = dict(fields(load(name))), dict(fields(load(recipe)))
    assert overlay.keys() <= base.keys()
    for field, value in overlay.items():
        assert type(value) is type(base[field]), field  # 1e-3 without a dot would be text
        assert not field.endswith("class_path") or value == base[field]
    assert overlay["data.num_classes"] == RECIPES[recipe][data_set]
    searched = {name for recipe_, values in VALUES if recipe_.startswith(f"{recipe}/") for name in values}
    assert {f"model.{field}" for field in searched} <= overlay.keys()


@pytest.mark.parametrize("recipe", [recipe for recipe, sets in RECIPES.items() if sets is VTAB])
def test_every_overlay_of_vtab_has_its_own_folder(recipe: str) -> None:
    roots = {name: load(f"{recipe}/{name}")["data"]["init_args"]["root"] for name in VTAB}
    assert roots == {name: f"data/vtab-1k/{name}" for name in VTAB}


@pytest.mark.parametrize(("name", "values"), VALUES)
def test_values_of_the_official_codes(name: str, values: dict[str, float]) -> None:
    found = dict(fields(load(name)))
    assert {field: found[f"model.{field}"] for field in values} == values


@pytest.mark.parametrize("recipe", RECIPES)
def test_by_itself_a_recipe_is_that_of_its_first_data_set(recipe: str) -> None:
    base = dict(fields(load(recipe)))
    first = dict(fields(load(f"{recipe}/{next(iter(RECIPES[recipe]))}")))
    assert {field: base[field] for field in first} == first


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_parser_takes_a_recipe_and_an_overlay(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{recipe}/{list(RECIPES[recipe])[-1]}"
    wanted = dict(fields(load(recipe))) | dict(fields(load(name)))
    found = parsed(capsys, recipe, name)
    for field, value in wanted.items():
        if field.endswith("class_path"):
            assert found[field].rpartition(".")[2] == value.rpartition(".")[2]
        else:
            assert found[field] == value, field
    assert found["model.num_classes"] is None  # comes from the data
    prefix = "model.method."
    arguments = {
        field.removeprefix(prefix): value
        for field, value in found.items()
        if field.startswith(prefix) and not field.endswith("class_path")
    }
    method = getattr(lightning_petl, found["model.method.class_path"].rpartition(".")[2])
    built = method(**arguments).arguments
    assert all(built[field] == value for field, value in arguments.items() if value is not None)


def test_the_variants_that_the_heads_name(capsys: pytest.CaptureFixture[str]) -> None:
    found = parsed(capsys, "arc_vtab1k", options=("--model.method.sites", "[attn]"))
    assert found["model.method.sites"] == ["attn"]
    tuning = ("--data.train_list", "train800.txt", "--data.val_list", "val200.txt")
    found = parsed(capsys, "repadapter_vtab1k", options=tuning)
    assert (found["data.train_list"], found["data.val_list"]) == tuning[1::2]


def test_protocols() -> None:
    for recipe, sets in RECIPES.items():
        found = dict(fields(load(recipe)))
        arc = recipe.startswith("arc")
        assert found["trainer.max_epochs"] == 100
        assert found["model.warmup_epochs"] == 10
        assert found.get("trainer.gradient_clip_val") == (1.0 if arc else None)
        assert (found["data.batch_size"], found["data.drop_last"]) == ((32, False) if arc else (64, True))
        assert found["model.schedule"] == ("step" if arc else "epoch")
        assert (found["model.warmup_lr"], found["model.min_lr"]) == ((0, 0) if arc else (1e-6, 1e-5))
        assert found.get("model.warmup_prefix", False) is arc
        assert found["model.decay_vectors"] is not recipe.startswith("consolidator")
        assert found["model.method.train_norms_and_biases"] if recipe.startswith("consolidator") else True
        assert found["seed_everything"] == found["data.seed"] == (0 if recipe.startswith("consolidator") else 42)
        assert found["data.normalization"] == "imagenet"
        if sets is VTAB:
            assert (found["data.train_list"], found["data.test_list"]) == ("train800val200.txt", "test.txt")
            assert "data.val_list" not in found


def write_task(root: Path) -> None:
    """Eight training and four test images of two classes in the layout of VTAB-1k."""
    for name, count in (("train800val200", 8), ("test", 4)):
        folder = root / "images" / name
        folder.mkdir(parents=True)
        lines = []
        for index in range(count):
            Image.new("RGB", (40, 36), (90 * (index % 2), 20 * index, 100)).save(folder / f"{index:06}.jpg")
            lines.append(f"images/{name}/{index:06}.jpg {index % 2}\n")
        (root / f"{name}.txt").write_text("".join(lines))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains(recipe: str, tmp_path: Path) -> None:
    """With a small new ViT and two epochs, everything else as it stands."""
    write_task(tmp_path / "data")
    small = {
        "model.backbone": "vit_tiny_patch16_224",
        "model.backbone_args": "{img_size: 32, depth: 2, embed_dim: 64, num_heads: 2, drop_path_rate: 0.1}",
        "model.pretrained": "false",
        "data.root": str(tmp_path / "data"),
        "data.train_list": "train800val200.txt",
        "data.num_classes": "2",
        "data.image_size": "32",
        "data.batch_size": "4",
        "data.num_workers": "0",
        "trainer.max_epochs": "2",
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.default_root_dir": str(tmp_path / "run"),
    }
    if recipe.startswith("consolidator"):
        small["model.method.groups"] = "[32]"
    name = f"{recipe}/{list(RECIPES[recipe])[-1]}"
    files = ["--config", str(PAPER / f"{recipe}.yaml"), "--config", str(PAPER / f"{name}.yaml")]
    assert cli.run(["fit", *files, *(word for key, value in small.items() for word in (f"--{key}", value))]) == 0
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    groups = saved["optimizer_states"][0]["param_groups"]
    wanted = dict(fields(load(recipe))) | dict(fields(load(name)))
    assert {group["initial_lr"] for group in groups} == {wanted["model.optimizer.lr"]}
    decays = [group["weight_decay"] for group in groups]
    assert decays == [wanted["model.optimizer.weight_decay"], 0.0][: 1 + recipe.startswith("consolidator")]
    assert (tmp_path / "run" / "merged.safetensors").stat().st_size > 0
