"""Starts a method plugin: ``python new.py NAME [FOLDER]`` copies the template, with the method's name in every place.

NAME is the name of the method's class, as users will write it: ``LowPass`` gives the distribution ``petl-lowpass`` with
the package ``petl_lowpass``, below FOLDER (here, if left out). Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import keyword
import re
import shutil
from importlib.metadata import entry_points
from pathlib import Path

TEMPLATE = Path(__file__).resolve().parent / "template"
IGNORED = ("__pycache__", "build", "dist", "*.egg-info", ".*_cache")


def new_plugin(name: str, parent: Path) -> Path:
    """Writes a plugin for a method.

    Args:
        name: Name of the method's class.
        parent: The folder below which the plugin's own is created.

    Returns:
        The plugin's folder.

    Raises:
        ValueError: The name is none for a class, or is taken.
        FileExistsError: The folder is there already.
    """
    reason = _refusal(name)
    if reason:
        raise ValueError(f"{name!r} {reason}")
    lower = name.lower()
    folder = parent / f"petl-{lower}"
    if folder.exists():
        raise FileExistsError(f"{folder} is there already")
    renamed = {"petl_template": f"petl_{lower}", "petl-template": f"petl-{lower}", "Template": name}
    shutil.copytree(TEMPLATE, folder, ignore=shutil.ignore_patterns(*IGNORED))
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder before the folder itself
        if path.is_file():
            path.write_text(_replace(path.read_text(encoding="utf-8"), renamed), encoding="utf-8")
        path.rename(path.with_name(_replace(path.name, renamed)))
    return folder


def _replace(text: str, renamed: dict[str, str]) -> str:
    for old, new in renamed.items():
        text = text.replace(old, new)
    return text


def _refusal(name: str) -> str:
    """What is wrong with a name; empty where nothing is."""
    if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", name) or keyword.iskeyword(name):
        return "is no name of a class: give letters and digits, the first a capital, as in LowPass"
    imported = set(re.findall(r"\b[A-Z]\w*", " ".join(_imports())))
    if name in imported or f"{name}Adapter" in imported:
        return "is imported by the template: choose another name"
    for entry in entry_points(group="lightning_petl.methods"):
        if entry.name.lower() == name.lower():
            owner = "lightning-petl" if entry.dist is None else entry.dist.name
            return f"is the name of a method already, of {owner}: choose another"
    return ""


def _imports() -> list[str]:
    files = (path.read_text(encoding="utf-8").splitlines() for path in TEMPLATE.rglob("*.py"))
    return [line for lines in files for line in lines if line.startswith("from ") and "petl_template" not in line]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=Path())
    options = parser.parse_args()
    try:
        folder = new_plugin(options.name, options.folder)
    except (ValueError, OSError) as error:
        parser.exit(2, f"new.py: error: {error}\n")
    package = f"petl_{options.name.lower()}"
    print(f"{folder} is ready. Next:\n")
    print(f"  pip install --editable '{folder}[test]'")
    print(f"  python -m pytest '{folder / 'tests'}'\n")
    print(f"Then write the method in {folder / package / '__init__.py'}.")


if __name__ == "__main__":
    main()
