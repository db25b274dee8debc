"""Imports point one way, and the package itself costs torch only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lightning_petl"

# Lower rooms know nothing of higher ones; a new room is entered here.
RANK = {
    "errors": 0,
    "lazy": 0,
    "activations": 1,
    "affine": 1,
    "adapter": 2,
    "grouped": 2,
    "layers": 2,
    "products": 2,
    "tensorfile": 3,
    "plugins": 3,
    "probe": 3,
    "structure": 3,
    "targets": 3,
    "wrappers": 3,
    "calls": 4,
    "injection": 5,
    "peft_format": 4,
    "merging": 6,
    "store": 6,
    "counting": 7,
    "exchange": 7,
    "methods": 3,
    "data": 8,
    "heads": 8,
    "backbones": 9,
    "deployment": 10,
    "tasks": 10,
    "callbacks": 11,
    "testing": 11,
    "cli": 12,
    "demo": 13,
    "__main__": 14,
}
# Sideways and upward edges that are meant: the digits module reads the demo's pure arrays.
ALLOWED = {("data.digits", "demo.digits"), ("demo.pretrain", "demo.digits")}
METHODS_MAY = {"adapter", "affine", "errors", "grouped", "products"}


def edges() -> list[tuple[str, str]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        here = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
        if here == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning_petl"):
                inside = (node.module or "").removeprefix("lightning_petl").lstrip(".")
                names = [inside] if inside else [alias.name for alias in node.names]
                found += [(here, name) for name in names]
    return found


def room(name: str) -> str:
    return name.partition(".")[0]


def test_the_house_is_read() -> None:
    assert ("injection", "targets") in edges()
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} <= RANK.keys()


@pytest.mark.parametrize(("here", "there"), edges())
def test_no_upward_import(here: str, there: str) -> None:
    if room(here) != room(there) and (here, there) not in ALLOWED:
        assert RANK[room(there)] < RANK[room(here)]
    if room(here) == "methods":
        assert room(there) in METHODS_MAY


def test_the_package_costs_torch_only() -> None:
    code = """
import sys
import lightning_petl as petl
petl.inject, petl.RepAdapter, petl.merge, petl.load_adapter
heavy = {"pytorch_lightning", "timm", "torchvision", "jsonargparse", "decord", "torchmetrics"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
