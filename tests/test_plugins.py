"""Methods from other distributions: found from metadata, told apart by distribution, and unable to break anything."""

from __future__ import annotations

import sys
from importlib.metadata import version

import pytest
from fake_plugins import BROKEN, Environment, broken, environment, method, twins

import lightning_petl as petl
from lightning_petl import PluginError, RepAdapter, cli, list_methods, plugins
from lightning_petl.plugins import load_method, method_named, name_of, scan

__all__ = ["broken", "environment", "twins"]

BUILT_IN = {"RepAdapter", "LinearProbe", "FullFineTuning"}


# -- listing -----------------------------------------------------------------------------------------------------------


def test_the_built_in_methods_come_through_the_same_door() -> None:
    found = list_methods()
    assert found.keys() >= BUILT_IN
    for name in BUILT_IN:
        info = found[name]
        assert info.cls is getattr(petl, name)
        assert (info.distribution, info.version) == ("lightning-petl", version("lightning-petl"))
        assert info.summary
        assert info.error is None


def test_a_good_plugin_is_listed(environment: Environment) -> None:
    environment.install("petl-good", {"good-one": "petl_good:Good"}, {"petl_good": method("Good")})
    info = list_methods()["good-one"]
    assert info.cls is sys.modules["petl_good"].Good
    assert (info.name, info.distribution, info.version) == ("good-one", "petl-good", "1.0")
    assert info.summary == "Rescales inputs."
    assert info.error is None


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_listed_with_its_error(name: str, broken: Environment) -> None:
    info = list_methods()[name]
    assert info.cls is None
    assert info.distribution == f"petl-{name}"
    assert info.error
    assert BROKEN[name][2] in info.error
    assert len(info.error.splitlines()) == 1
    info.error.encode()
    with pytest.raises(PluginError, match=rf"method {name} of petl-{name} cannot be used: ") as caught:
        load_method(name)
    assert info.error in str(caught.value)


def test_broken_plugins_cost_nothing_else(broken: Environment) -> None:
    found = list_methods()
    assert {name for name, info in found.items() if info.error is None} >= BUILT_IN | {"Good", "Bare", "Blank", "Latin"}
    assert found["RepAdapter"].cls is RepAdapter
    assert load_method("RepAdapter") is RepAdapter
    assert load_method("good") is sys.modules["petl_good"].Good
    assert {found[name].distribution for name in ("Bare", "Blank", "Latin")} == {"unknown"}


def test_metadata_that_cannot_be_read_is_one_plugins_own_trouble(
    broken: Environment, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such a file stops whoever asks importlib for all entry points, Lightning too; not the commands that need none."""
    broken.install("petl-lines", "[lightning_petl.methods]\nno value here\n")
    broken.install("petl-bytes", "[lightning_petl.methods]\nBytes = petl_b\udcff:B\n")
    found = list_methods()
    info = found["entry_points.txt"]
    assert (info.cls, info.distribution) == (None, "petl-lines")
    assert "entry_points.txt cannot be read: " in info.error
    assert "Bytes" not in found
    assert load_method("Good") is found["Good"].cls
    assert cli.run(["methods"]) == 0
    assert "entry_points.txt cannot be read" in capsys.readouterr().out


def test_two_versions_in_one_folder_are_one_distribution(environment: Environment) -> None:
    environment.install("petl-x", {"X": "petl_x:X"}, {"petl_x": method("X")})
    (environment.folder("site") / "petl_x-1.0.dist-info").rename(environment.folder("site") / "petl_x-0.9.dist-info")
    environment.install("petl-x", {"X": "petl_x:X"})
    assert [info.error for info in scan().values() if info.distribution == "petl-x"] == [None]


def test_listing_by_metadata_imports_nothing(broken: Environment) -> None:
    found = scan()
    assert found.keys() >= {*BUILT_IN, *BROKEN, "Good"}
    assert not broken.imported()
    assert all(info.cls is None for info in found.values())


def test_loading_one_method_imports_no_other(broken: Environment) -> None:
    load_method("Good")
    assert broken.imported() == {"petl_good"}
    broken.forget()
    with pytest.raises(PluginError):
        method_named("future", "petl-future")
    assert broken.imported() == {"petl_future"}


def test_an_interrupt_is_not_taken_for_a_fault(environment: Environment, capsys: pytest.CaptureFixture[str]) -> None:
    environment.install("petl-stop", {"Stop": "petl_stop:Stop"}, {"petl_stop": "raise KeyboardInterrupt"})
    with pytest.raises(KeyboardInterrupt):
        list_methods()
    with pytest.raises(KeyboardInterrupt):
        load_method("Stop")
    assert cli.run(["methods", "--check"]) == 130
    assert cli.run(["methods"]) == 0
    assert load_method("RepAdapter") is RepAdapter


# -- two of one name ---------------------------------------------------------------------------------------------------


def test_of_two_with_one_name_the_later_has_the_error(twins: Environment) -> None:
    found = list_methods()
    assert found["ia3"].distribution == "petl-a"
    assert found["ia3"].error is None
    later = found["petl-b:ia3"]
    assert later.cls is None
    assert "petl-a and petl-b both provide it" in later.error
    assert "select this one as petl-b:ia3" in later.error
    assert twins.imported() == {"petl_a"}, "the later costs nothing"
    assert load_method("ia3") is sys.modules["petl_a"].IA3


@pytest.mark.parametrize("name", ["ia3", "IA3"])
def test_each_of_two_is_selected_with_its_distribution(name: str, twins: Environment) -> None:
    for distribution, module in (("petl-a", "petl_a"), ("petl-b", "petl_b"), ("Petl_B", "petl_b")):
        cls = load_method(f"{distribution}:{name}")
        assert cls is sys.modules[module].IA3
        info = name_of(cls)
        assert (info.name, info.distribution) == ("ia3", module.replace("_", "-"))
    with pytest.raises(PluginError, match="no installed method is named 'petl-c:ia3'"):
        load_method("petl-c:ia3")


def test_no_plugin_shadows_a_built_in_method(environment: Environment) -> None:
    environment.install("a-petl", {"RepAdapter": "a_petl:X"}, {"a_petl": method("X")})
    environment.install("b-petl", {"repadapter": "b_petl:Y"}, {"b_petl": method("Y")})
    environment.install("c-petl", {"mine": "c_petl:RepAdapter"}, {"c_petl": method("RepAdapter")})
    found = list_methods()
    for name in ("RepAdapter", "repadapter", "REPADAPTER"):
        assert load_method(name) is found[name].cls is RepAdapter
    for key in ("a-petl:RepAdapter", "b-petl:repadapter", "c-petl:mine"):
        assert found[key].cls is None
        told = f"'RepAdapter' is built in and cannot be shadowed: lightning-petl and {key[:6]} both provide it"
        assert told in found[key].error
    assert not environment.imported()
    # Named in full, nothing is shadowed.
    assert load_method("a-petl:RepAdapter") is sys.modules["a_petl"].X
    assert load_method("lightning-petl:RepAdapter") is RepAdapter


def test_names_are_one_in_any_case_of_letters(environment: Environment) -> None:
    environment.install("petl-a", {"ia3": "petl_a:A"}, {"petl_a": method("A")})
    environment.install("petl-b", {"IA3": "petl_b:B"}, {"petl_b": method("B")})
    assert load_method("IA3") is load_method("ia3") is load_method("A")
    assert "petl-a and petl-b both provide it" in scan()["petl-b:IA3"].error


def test_a_class_name_of_two_methods_selects_neither(environment: Environment) -> None:
    for key in "ab":
        environment.install(f"petl-{key}", {f"{key}-ia3": f"petl_{key}:IA3"}, {f"petl_{key}": method("IA3")})
    assert load_method("a-ia3") is not load_method("b-ia3")
    with pytest.raises(PluginError, match=r"no installed method is named 'IA3'.*a-ia3, b-ia3"):
        load_method("IA3")
    assert load_method("petl-b:IA3") is load_method("b-ia3")


def test_of_two_copies_of_a_distribution_python_takes_the_first(environment: Environment) -> None:
    for folder, name in (("first", "New"), ("second", "Old")):
        environment.install("petl-x", {name: "petl_x:X"}, {"petl_x": method("X")}, folder)
    assert "New" in scan()
    assert "Old" not in scan()
    environment.leave()
    environment.install("petl-x", "[console_scripts]\nx = petl_x:main\n", folder="third")
    environment.install("petl-x", {"Old": "petl_x:X"}, {"petl_x": method("X")}, "fourth")
    assert "Old" not in scan(), "the first copy provides no method any more"


def test_one_distribution_may_name_a_class_twice(environment: Environment) -> None:
    names = {"one": "petl_x:X", "two": "petl_x:X"}
    environment.install("petl-x", names, {"petl_x": method("X")})
    assert load_method("one") is load_method("two")
    assert name_of(load_method("two")).name in names


def test_lookups(environment: Environment) -> None:
    environment.install("petl-x", {"my-x": "petl_x.deep:Outer.Inner [extra]"})
    found = scan()
    assert "my-x" in found
    assert "MY-X" in found
    assert "inner" in found
    assert "petl-x:Inner" in found
    assert found["PETL.X:my-x"] is found["my-x"]
    for absent in ("", ":", "petl-x:", ":my-x:", "outer", "deep", 3, None, "petl-y:my-x"):
        assert absent not in found
    with pytest.raises(KeyError):
        found["petl-y:my-x"]
    assert plugins.GROUP == "lightning_petl.methods"
