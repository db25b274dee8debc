"""A method of somebody else's, packaged in somebody else's way, installed by pip: it is a method like any other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_petl.tensorfile import read_header

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/quickstart.yaml"
WEIGHTS = "lightning_petl:demo/vit_digits.safetensors"
SHORT = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.enable_progress_bar", "false"]

# Its package lies below src and has another name than its distribution; the class is defined two modules deep and
# exported under a path of its own; it has no types, no docstrings in our style, and says something when it is imported.
FILES = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "Acme_Vision.Tuning"
version = "3.1.4rc1"
dependencies = ["lightning-petl"]

[project.entry-points."lightning_petl.methods"]
RankOne = "acme.tuning:RankOne"

[tool.setuptools.packages.find]
where = ["src"]
""",
    "src/acme/__init__.py": "",
    "src/acme/tuning/__init__.py": """
print("acme: thank you for tuning")
from ._impl.methods import RankOne
""",
    "src/acme/tuning/_impl/__init__.py": "",
    "src/acme/tuning/_impl/methods.py": '''
import math

import lightning_petl as lp
import torch


class _Outer(lp.Adapter):
    def __init__(self, t, temperature, seed_scale):
        super().__init__()
        self.temperature = temperature
        made = dict(device=t.device, dtype=t.dtype)
        self.row = torch.nn.Parameter(torch.randn(t.in_features, **made) * seed_scale / math.sqrt(t.in_features))
        self.column = torch.nn.Parameter(torch.zeros(t.out_features, **made))

    def merged(self, base):
        return lp.Affine(base.weight + torch.outer(self.column, self.row) / self.temperature, base.bias)


class RankOne(lp.Method):
    """One outer product for each projection.

    Args:
        temperature: Divides the change.
        names: Last parts of the paths of layers.
        seed_scale: Size of the random start of the rows.
    """

    def __init__(self, temperature: float = 2.0, names: list[str] = ["qkv", "fc1"], seed_scale: float = 1.0):
        super().__init__(targets=[".*[.](" + "|".join(names) + ")"])
        self.options = temperature, seed_scale

    def build(self, target, shared=None):
        return _Outer(target, *self.options)
''',
}
"""The distribution's files, by their paths."""


def run(folder: Path, *arguments: object, installed: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, in a folder, in a process that sees the plugin or does not."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1"} | ({} if installed is None else {"PYTHONPATH": str(installed)})
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def command(folder: Path, installed: Path | None, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run(folder, "-m", "lightning_petl", *arguments, installed=installed)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip installed the plugin into; nothing else is there."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    for name, content in FILES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(content)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", target]
    done = run(source, "-m", "pip", "install", *options, source)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def fitted(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the method by its name, with a setting of its own."""
    folder = tmp_path_factory.mktemp("by_name")
    options = ["--model.method", "RankOne", "--model.method.temperature", "0.5", "--model.method.names", '["qkv"]']
    done = command(folder, installed, "fit", "--config", CONFIG, *options, *SHORT, "--trainer.default_root_dir", "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_it_is_listed(installed: Path, tmp_path: Path) -> None:
    done = command(tmp_path, installed, "methods", "--json", "--check")
    assert done.returncode == 0
    found = {method["name"]: method for method in json.loads(done.stdout)}["RankOne"]
    assert (found["distribution"], found["version"]) == ("acme-vision-tuning", "3.1.4rc1")
    assert (found["summary"], found["error"]) == ("One outer product for each projection.", None)


def test_its_help_says_what_it_takes(installed: Path, tmp_path: Path) -> None:
    done = command(tmp_path, installed, "fit", "--model.method.help", "RankOne")
    assert done.returncode == 0, done.stderr
    assert "method.temperature TEMPERATURE" in done.stdout
    assert "Divides the change. (type: float, default: 2.0)" in " ".join(done.stdout.split())


def test_by_name_its_files_name_its_distribution_and_settings(fitted: Path) -> None:
    method = read_header(fitted / "adapter.safetensors")["method"]
    arguments = {"temperature": 0.5, "names": ["qkv"], "seed_scale": 1.0}
    identity = {"name": "RankOne", "distribution": "acme-vision-tuning", "version": "3.1.4rc1"}
    assert method == identity | {"arguments": arguments}
    certificate = json.loads((fitted / "certificate.json").read_text())
    assert sorted(certificate["layers"]) == [f"blocks.{block}.attn.qkv" for block in range(4)]
    assert certificate["float64_error"] < 1e-12


@pytest.mark.parametrize("class_path", ["RankOne", "acme.tuning.RankOne"])
def test_from_yaml(class_path: str, installed: Path, tmp_path: Path) -> None:
    lines = ["model:", "  init_args:", "    method:", f"      class_path: {class_path}"]
    (tmp_path / "method.yaml").write_text("\n".join([*lines, "      init_args: {temperature: 4, names: [fc1]}\n"]))
    options = ["--config", CONFIG, "--config", "method.yaml", *SHORT, "--trainer.default_root_dir", "run"]
    done = command(tmp_path, installed, "fit", *options)
    assert done.returncode == 0, done.stderr
    method = read_header(tmp_path / "run/adapter.safetensors")["method"]
    assert isinstance(method, dict)
    assert (method["name"], method["distribution"]) == ("RankOne", "acme-vision-tuning")
    assert method["arguments"] == {"temperature": 4.0, "names": ["fc1"], "seed_scale": 1.0}


LOAD = """
import sys
import timm
from lightning_petl import load_adapter, merge
from lightning_petl.backbones.timm_models import load_weights, weights_file
sizes = dict(img_size=32, patch_size=8, embed_dim=64, depth=4, num_heads=4, mlp_ratio=2, num_classes=5)
model = timm.create_model("vit_tiny_patch16_224", **sizes)
load_weights(model, weights_file({weights!r}))
load_adapter(model, sys.argv[1])
print(len(merge(model).layers), "folded")
"""


def test_its_file_loads_where_it_is_installed(fitted: Path, installed: Path, tmp_path: Path) -> None:
    adapter = fitted / "adapter.safetensors"
    done = run(tmp_path, "-c", LOAD.format(weights=WEIGHTS), adapter, installed=installed)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "4 folded"
    done = command(tmp_path, installed, "merge", adapter, "--backbone", WEIGHTS, "--out", "merged.safetensors")
    assert done.returncode == 0, done.stderr


def test_where_it_is_not_installed_its_file_says_what_to_install(fitted: Path, tmp_path: Path) -> None:
    adapter = fitted / "adapter.safetensors"
    done = run(tmp_path, "-c", LOAD.format(weights=WEIGHTS), adapter)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("lightning_petl.errors.PluginError: ")
    assert "RankOne" in last
    assert last.endswith("install acme-vision-tuning")
    done = command(tmp_path, None, "merge", adapter, "--backbone", WEIGHTS, "--out", "merged.safetensors")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("lightning-petl: error: ")
    assert last.endswith("install acme-vision-tuning")
    assert not (tmp_path / "merged.safetensors").exists()


def test_where_it_is_not_installed_the_merged_file_serves(fitted: Path, tmp_path: Path) -> None:
    code = """
import sys
import timm
from safetensors.torch import load_file
sizes = dict(img_size=32, patch_size=8, embed_dim=64, depth=4, num_heads=4, mlp_ratio=2, num_classes=5)
timm.create_model("vit_tiny_patch16_224", **sizes).load_state_dict(load_file(sys.argv[1]), strict=True)
"""
    done = run(tmp_path, "-c", code, fitted / "merged.safetensors")
    assert done.returncode == 0, done.stderr


def test_where_it_is_not_installed_its_name_is_unknown(tmp_path: Path) -> None:
    done = command(tmp_path, None, "fit", "--config", CONFIG, "--model.method", "RankOne")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("lightning-petl: error: unknown method 'RankOne' [model.method]")
