"""Files of methods from other distributions: what they name, where they load, and that they import nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import files_by_hand as by_hand
import liars
import pytest
import torch
from fake_plugins import Environment, broken, environment, method, twins
from torch import nn

import lightning_petl as petl
from lightning_petl import PluginError, RepAdapter, list_methods
from lightning_petl.plugins import load_method, name_of

__all__ = ["broken", "environment", "twins"]


def small() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))


def save(method: petl.Method, path: Path) -> nn.Module:
    """Writes a file as after training."""
    model = petl.inject(small(), method)
    with torch.no_grad():
        for parameter in petl.trainable(model).values():
            parameter.add_(torch.rand_like(parameter))
    petl.save_adapter(model, path)
    return model.eval()


@pytest.fixture
def ia3(environment: Environment) -> Environment:
    """A plugin that names its class by the package, as most do, and defines it in a module inside."""
    modules = {"petl_ia3.__init__": "from petl_ia3.core import IA3", "petl_ia3.core": method("IA3")}
    environment.install("petl-ia3", {"ia3": "petl_ia3:IA3"}, modules)
    return environment


def test_a_plugins_file_names_its_distribution(ia3: Environment, tmp_path: Path) -> None:
    save(load_method("ia3")(targets=("0",), strength=2.5), tmp_path / "a.safetensors")
    assert by_hand.header(tmp_path / "a.safetensors")["method"] == {
        "name": "ia3",
        "distribution": "petl-ia3",
        "version": "1.0",
        "arguments": {"targets": ["0"], "strength": 2.5},
    }


def test_a_plugins_file_loads_where_it_is_installed(ia3: Environment, tmp_path: Path) -> None:
    path, x = tmp_path / "a.safetensors", torch.linspace(-1, 1, 16)
    with torch.no_grad():
        expected = save(load_method("ia3")(targets=("0",)), path)(x).tolist()
    code = f"""
import sys
sys.path.insert(0, {str(ia3.folder("site"))!r})
import torch
import lightning_petl as petl
torch.set_num_threads(1)
torch.manual_seed(5)
model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
assert "petl_ia3" not in sys.modules
petl.load_adapter(model, {str(path)!r}).eval()
assert model(torch.linspace(-1, 1, 16)).tolist() == {expected}
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def refused(path: Path, field: str) -> str:
    """Asserts that a file is refused by a PluginError about a field, without a trace; its text."""
    model = small()
    before = [(id(tensor), tensor.tolist(), tensor.requires_grad) for tensor in model.parameters()]
    with pytest.raises(PluginError) as caught:
        petl.load_adapter(model, path)
    assert caught.value.where.endswith(field)
    assert [(id(tensor), tensor.tolist(), tensor.requires_grad) for tensor in model.parameters()] == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_plugins_file_names_what_is_missing_where_it_is_not_installed(ia3: Environment, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(load_method("ia3")(targets=("0",)), path)
    ia3.leave()
    assert "method ia3 of distribution 'petl-ia3' is missing" in refused(path, "method.name")
    assert "install petl-ia3" in refused(path, "method.name")

    ia3.install("petl-other", {"ia3": "petl_other:IA3"}, {"petl_other": method("IA3")}, "other")
    text = refused(path, "method.distribution")
    assert "'petl-ia3'" in text
    assert "'petl-other'" in text
    assert not ia3.imported()

    ia3.install("petl-ia3", {"ia3": "petl_ia3:IA3"}, {"petl_ia3.__init__": "import no_such_module"}, "broken")
    assert "method ia3 of petl-ia3 cannot be used: ModuleNotFoundError" in refused(path, "method")


def test_a_class_is_named_by_its_entry_point_however_it_was_reached(ia3: Environment) -> None:
    from_core = __import__("petl_ia3.core", fromlist=["IA3"]).IA3
    assert (name_of(from_core).name, name_of(from_core).distribution) == ("ia3", "petl-ia3")
    modules = {"petl_two_core": method("Two"), "petl_two_api": "from petl_two_core import Two"}
    ia3.install("petl-two", {"two": "petl_two_api:Two"}, modules)
    cls = __import__("petl_two_core").Two
    assert "petl_two_api" not in sys.modules
    assert (name_of(cls).name, name_of(cls).distribution) == ("two", "petl-two")
    assert (name_of(RepAdapter).name, name_of(RepAdapter).distribution) == ("RepAdapter", "lightning-petl")


def test_a_class_without_an_entry_point_is_named_by_its_path(ia3: Environment, tmp_path: Path) -> None:
    info = name_of(liars.Honest)
    assert (info.name, info.distribution, info.version) == ("liars:Honest", "", "")
    save(liars.Honest(targets=("0",)), tmp_path / "a.safetensors")
    petl.load_adapter(small(), tmp_path / "a.safetensors")
    assert not ia3.imported()
    by_hand.forge(tmp_path / "a.safetensors", by_hand.set_in("method", name="liars:Nobody"))
    assert "import its module first" in refused(tmp_path / "a.safetensors", "method.name")


TRAPS = [
    ("os:system", ""), ("os:system", "lightning-petl"), ("os.system", ""), ("petl_trap:Trap", ""),
    ("petl_trap:Trap", "petl-trap"), ("petl_trap.Trap", "petl-trap"), ("petl_trap", ""), ("trap", "lightning-petl"),
    ("trap", ""), ("petl-trap:trap", ""), ("petl-trap:trap", "petl-trap"), ("Trap", "petl-trap"), ("", ""),
]  # fmt: skip


@pytest.mark.parametrize(("name", "distribution"), TRAPS)
def test_loading_imports_nothing_but_the_installed_method_that_is_named(
    name: str, distribution: str, environment: Environment, tmp_path: Path
) -> None:
    marker = tmp_path / "sprung"
    spring = f"open({str(marker)!r}, 'w').close()\n"
    environment.install("petl-trap", {"trap": "petl_trap:Trap"}, {"petl_trap": spring + method("Trap")})
    path = tmp_path / "a.safetensors"
    save(RepAdapter(targets=("0",)), path)
    by_hand.forge(path, by_hand.set_in("method", name=name, distribution=distribution))
    refused(path, "method.distribution" if name == "trap" else "method.name")
    assert not marker.exists()
    assert not environment.imported()


def test_a_class_that_cannot_be_used_is_not_reached_by_its_path(broken: Environment, tmp_path: Path) -> None:
    """A plugin of another contract leaves its class in memory after a listing."""
    list_methods()
    path = tmp_path / "a.safetensors"
    save(RepAdapter(targets=("0",)), path)
    for name in ("petl_future:Future", "petl_abstract:Abstract"):
        assert name.partition(":")[0] in sys.modules
        by_hand.forge(path, by_hand.set_in("method", name=name, distribution=""))
        assert "cannot be used" in refused(path, "method.name")


def test_a_method_of_another_contract_is_not_injected(broken: Environment) -> None:
    list_methods()
    with pytest.raises(PluginError, match="plugin API '2'"):
        petl.inject(small(), sys.modules["petl_future"].Future(targets=("0",)))


def test_files_of_two_with_one_name_are_told_apart(twins: Environment, tmp_path: Path) -> None:
    for distribution, module in (("petl-a", "petl_a"), ("petl-b", "petl_b")):
        path = tmp_path / f"{distribution}.safetensors"
        save(load_method(f"{distribution}:ia3")(targets=("0",)), path)
        assert by_hand.header(path)["method"]["distribution"] == distribution
        twins.forget()
        loaded = petl.load_adapter(small(), path)
        assert {type(layer.adapter).__module__ for layer in petl.adapted_layers(loaded).values()} == {module}
        assert twins.imported() == {module}
