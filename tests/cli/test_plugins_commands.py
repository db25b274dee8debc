"""Plugins on the command line: listed whatever they are, and chosen by name, distribution or class."""

from __future__ import annotations

import json
import subprocess
import sys
import traceback
from pathlib import Path

import files_by_hand as by_hand
import pytest
from fake_plugins import BROKEN, Environment, broken, environment, method

from lightning_petl import cli

__all__ = ["broken", "environment"]

BUILT_IN = {"RepAdapter", "LinearProbe", "FullFineTuning"}
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def shown(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What `methods` printed, by name."""
    return {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}


def test_methods_lists_from_metadata(broken: Environment, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["methods"]) == 0
    lines = shown(capsys)
    assert lines.keys() >= {*BUILT_IN, *BROKEN, "Good"}
    assert lines["Good"].split() == ["Good", "petl-good", "1.0"]
    assert "error: " in lines["petl-false:RepAdapter"]
    assert not broken.imported()


def test_methods_check_shows_each_error_and_fails(broken: Environment, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["methods", "--check"]) == 1
    lines = shown(capsys)
    for name, (_, _, told) in BROKEN.items():
        assert "error: " in lines[name]
        assert told in lines[name]
    assert lines["Good"].endswith("Rescales inputs.")
    assert "error" not in lines["RepAdapter"]


def test_methods_check_is_content_with_good_ones(environment: Environment, capsys: pytest.CaptureFixture[str]) -> None:
    environment.install("petl-good", {"Good": "petl_good:Good"}, {"petl_good": method("Good")})
    assert cli.run(["methods", "--check"]) == 0
    assert "error" not in capsys.readouterr().out


@pytest.mark.parametrize("options", [[], ["--check"]], ids=["metadata", "check"])
def test_methods_json(options: list[str], broken: Environment, capsys: pytest.CaptureFixture[str]) -> None:
    broken.install("petl-loud", {"Loud": "petl_loud:Loud"}, {"petl_loud": "print('{hello}')\n" + method("Loud")})
    assert cli.run(["methods", "--json", *options]) == len(options)
    records = {(each["distribution"], each["name"]): each for each in json.loads(capsys.readouterr().out)}
    assert records["petl-good", "Good"]["class"] == "petl_good:Good"
    assert records["petl-good", "Good"]["version"] == "1.0"
    assert ("petl-loud", "Loud") in records
    assert records["petl-false", "RepAdapter"]["error"]
    assert bool(records["petl-exits", "exits"]["error"]) == bool(options)


def test_methods_starts_no_torch_and_no_plugin(environment: Environment) -> None:
    environment.install("petl-good", {"Good": "petl_good:Good"}, {"petl_good": method("Good")})
    code = f"""
import sys
sys.path.insert(0, {str(environment.folder("site"))!r})
from lightning_petl import cli
assert cli.run(["methods"]) == cli.run(["methods", "--json"]) == 0
found = {{"torch", "pytorch_lightning", "timm", "numpy", "jsonargparse", "petl_good"}} & sys.modules.keys()
assert not found, found
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert "petl-good" in done.stdout


def fit(folder: Path, *options: str) -> int:
    quick = [
        "--trainer.max_epochs",
        "1",
        "--trainer.limit_train_batches",
        "1",
        "--trainer.enable_progress_bar",
        "false",
    ]
    root = ["--trainer.default_root_dir", str(folder)]
    return cli.run(["fit", "--config", str(QUICKSTART), *quick, *root, *options])


def test_fit_with_another_method_is_not_disturbed(broken: Environment, tmp_path: Path) -> None:
    assert fit(tmp_path / "built in") == 0
    assert by_hand.header(tmp_path / "built in" / "adapter.safetensors")["method"]["distribution"] == "lightning-petl"
    assert fit(tmp_path / "good", "--model.method", "Good") == 0
    assert by_hand.header(tmp_path / "good" / "adapter.safetensors")["method"]["distribution"] == "petl-good"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("raises", ["method raises of petl-raises cannot be used", "RuntimeError: out of luck"]),
        ("future", ["method future of petl-future cannot be used", "plugin API '2'"]),
        ("Gode", ["unknown method 'Gode'", "did you mean Good?", "petl-exits failed: SystemExit: 0"]),
        ("petl-gode:Good", ["unknown method 'petl-gode:Good'"]),
    ],
)
def test_fit_with_a_method_that_cannot_be_used(
    given: str, told: list[str], broken: Environment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path, "--model.method", given) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("lightning-petl: error: ")
    for text in told:
        assert text in last


def failing(place: str, error: str) -> str:
    """Source of a method that raises in one of its functions."""
    source, lines = method("Bad"), f"raise {error}"
    return {
        "__init__": source.replace("super().__init__(targets=targets)", lines),
        "build": source.replace("return BadAdapter(target)", lines),
        "build, in the adapter": source.replace("super().__init__()\n", f"{lines}\n"),
        "shared": source + f"\n    def shared(self, targets):\n        {lines}\n",
        "trained": source + f"\n    def trained(self, model):\n        {lines}\n",
    }[place]


@pytest.mark.parametrize("place", ["__init__", "build", "build, in the adapter", "shared", "trained"])
def test_an_error_in_a_methods_own_code_names_it(
    place: str,
    environment: Environment,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = failing(place, "ValueError('a rank of 4 is too much\\nfor this')")
    environment.install("petl-bad", {"Bad": "petl_bad:Bad"}, {"petl_bad": source})
    assert fit(tmp_path, "--model.method", "Bad") == 1
    where = f"method Bad of petl-bad, {place.partition(',')[0]}"
    told = f"ValueError: a rank of 4 is too much [{where}] - set LIGHTNING_PETL_DEBUG=1 for the traceback"
    assert capsys.readouterr().err.splitlines()[-1] == f"lightning-petl: error: {told}"
    monkeypatch.setenv("LIGHTNING_PETL_DEBUG", "1")
    with pytest.raises(ValueError, match="a rank of 4 is too much") as caught:  # the parser wraps it, and chains it
        fit(tmp_path, "--model.method", "Bad")
    original = cli.cause(caught.value)
    assert (type(original), str(original)) == (ValueError, "a rank of 4 is too much\nfor this")
    assert "petl_bad.py" in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("place", ["__init__", "build"])
def test_a_methods_own_checks_are_told_as_they_are(
    place: str, environment: Environment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = "__import__('lightning_petl').ConfigError('rank is 0', where='rank', fix='give 1 or more')"
    environment.install("petl-bad", {"Bad": "petl_bad:Bad"}, {"petl_bad": failing(place, error)})
    assert fit(tmp_path, "--model.method", "Bad") == 1
    assert capsys.readouterr().err.splitlines()[-1] == "lightning-petl: error: rank is 0 [rank] - give 1 or more"


def test_an_error_in_the_package_itself_names_no_method(
    environment: Environment, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where its functions take a method."""

    def broken(*_: object) -> None:
        raise ValueError("no fault of the method")

    environment.install("petl-good", {"Good": "petl_good:Good"}, {"petl_good": method("Good")})
    monkeypatch.setattr("lightning_petl.injection.isinstance", broken, raising=False)
    assert fit(tmp_path, "--model.method", "Good") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert (
        last
        == "lightning-petl: error: ValueError: no fault of the method - set LIGHTNING_PETL_DEBUG=1 for the traceback"
    )


def test_each_of_two_with_one_name_is_selected(environment: Environment, capsys: pytest.CaptureFixture[str]) -> None:
    for key in "ab":
        environment.install(f"petl-{key}", {"ia3": f"petl_{key}:IA3"}, {f"petl_{key}": method("IA3")})
    for chosen, path in (
        (["--model.method", "ia3"], "petl_a.IA3"),
        (["--model.method=petl-a:ia3"], "petl_a.IA3"),
        (["--model.method", "petl-b:ia3"], "petl_b.IA3"),
        (["--model.method=petl-b:IA3"], "petl_b.IA3"),
    ):
        assert cli.run(["fit", "--config", str(QUICKSTART), *chosen, "--print_config"]) == 0
        assert f"class_path: {path}\n" in capsys.readouterr().out
    assert cli.run(["fit", "--model.method.help", "petl-b:ia3"]) == 0
    shown = capsys.readouterr().out
    assert "petl_b.IA3" in shown
    assert "--method.strength STRENGTH" in shown
