"""Installs distributions for the length of a test: folders on the import path with metadata and modules."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

METHOD = """
import torch
from lightning_petl import Adapter, Affine, Method

class {name}Adapter(Adapter):
    def __init__(self, target):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(target.in_features, device=target.device, dtype=target.dtype))

    def merged(self, base):
        return Affine(base.weight * self.gain, base.bias)

class {name}(Method):
    \"\"\"Rescales inputs.

    More of it.
    \"\"\"

    def __init__(self, targets: tuple[str, ...] = (r".*fc2",), strength: float = 1.0) -> None:
        super().__init__(targets=targets)

    def build(self, target, shared=None):
        return {name}Adapter(target)
"""


@dataclass
class Environment:
    """A place to install into; everything is gone after the test."""

    root: Path
    monkeypatch: pytest.MonkeyPatch
    modules: set[str] = field(default_factory=set)
    folders: list[Path] = field(default_factory=list)

    def folder(self, name: str) -> Path:
        """A folder on the import path, behind those that are there already."""
        path = self.root / name
        if path not in self.folders:
            path.mkdir()
            self.folders.append(path)
            # In front of the installed packages, in the order of creation.
            self.monkeypatch.setattr(sys, "path", [*map(str, self.folders), *self._path()])
        return path

    def _path(self) -> list[str]:
        return [entry for entry in sys.path if Path(entry) not in self.folders]

    def install(
        self,
        distribution: str,
        methods: Mapping[str, str] | str,
        modules: Mapping[str, str] | None = None,
        folder: str = "site",
        metadata: str | None = "Metadata-Version: 2.1\nName: {}\nVersion: 1.0\n",
    ) -> None:
        """Writes a distribution.

        Args:
            distribution: Its name.
            methods: What each entry point names, or the whole text of entry_points.txt.
            modules: Source of each module, by its dotted name; a name that ends in ``.__init__`` makes a package.
            folder: Where on the import path.
            metadata: Text of METADATA; None for none.
        """
        place = self.folder(folder)
        info = place / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        if metadata is not None:
            (info / "METADATA").write_text(metadata.format(distribution), errors="surrogateescape")
        if not isinstance(methods, str):
            lines = (f"{name} = {value}\n" for name, value in methods.items())
            methods = "[lightning_petl.methods]\n" + "".join(lines)
        (info / "entry_points.txt").write_text(methods, errors="surrogateescape")
        for name, source in (modules or {}).items():
            path = place / f"{name.replace('.', '/')}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(source)
            self.modules.add(name.partition(".")[0])
        importlib.invalidate_caches()

    def leave(self) -> None:
        """Takes everything off the import path and out of the interpreter."""
        self.monkeypatch.setattr(sys, "path", self._path())
        self.folders.clear()
        self.forget()

    def forget(self) -> None:
        """Takes the modules out of the interpreter, their classes too."""
        for name in list(sys.modules):
            if name.partition(".")[0] in self.modules:
                del sys.modules[name]
        importlib.invalidate_caches()
        gc.collect()

    def imported(self) -> set[str]:
        """Which of the modules are imported."""
        return {name for name in sys.modules if name.partition(".")[0] in self.modules}


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Environment]:
    place = Environment(tmp_path / "environment", monkeypatch)
    place.root.mkdir()
    yield place
    place.leave()


def method(name: str, **changes: str) -> str:
    """Source of a module with one honest method, changed."""
    source = METHOD.format(name=name)
    for old, new in changes.items():
        source += f"\n{name}.{old} = {new}\n"
    return source


BROKEN: dict[str, tuple[str, str, str]] = {
    "raises": ("petl_raises:Raises", "raise RuntimeError('\\n  out of luck\\nand more')", "RuntimeError: out of luck"),
    "exits": ("petl_exits:Exits", "import sys\nsys.exit(0)", "SystemExit: 0"),
    "quits": ("petl_quits:Quits", "raise SystemExit", "SystemExit"),
    "base": ("petl_base:Base", "raise BaseException('at the root')", "BaseException: at the root"),
    "needs": ("petl_needs:Needs", "import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "syntax": ("petl_syntax:Syntax", "def (", "SyntaxError: invalid syntax (petl_syntax.py, line 1)"),
    "absent": ("petl_nowhere:Absent", "", "ModuleNotFoundError: No module named 'petl_nowhere'"),
    "lacks": ("petl_lacks:Lacks", "", "AttributeError: module 'petl_lacks' has no attribute 'Lacks'"),
    "module": ("petl_module", "", "is no subclass of lightning_petl.Method"),
    "function": ("petl_function:build", "def build(): ...", "is no subclass of lightning_petl.Method"),
    "class": ("petl_class:Other", "class Other: ...", "is no subclass of lightning_petl.Method"),
    "instance": (
        "petl_instance:instance",
        method("Instance") + "instance = Instance()",
        "is no subclass of lightning_petl.Method",
    ),
    "adapter": ("petl_adapter:NamedAdapter", method("Named"), "is no subclass of lightning_petl.Method"),
    "future": (
        "petl_future:Future",
        method("Future", petl_api="'2'"),
        "it is written for plugin API '2', and this lightning-petl has '1'",
    ),
    "abstract": (
        "petl_abstract:Abstract",
        "from lightning_petl import Method\nclass Abstract(Method): ...",
        "it lacks build",
    ),
    "unreadable": (
        "petl_unreadable:Unreadable",
        "class Odd(Exception):\n    def __str__(self): raise ValueError\nraise Odd",
        "Odd",
    ),
    "mumbles": ("petl_mumbles:Mumbles", "raise ValueError('\\ud800')", "ValueError: \\ud800"),
    "nameless": ("petl nameless", "", ""),
}


def source_name(value: str) -> str:
    return value.partition(":")[0]


@pytest.fixture
def broken(environment: Environment) -> Environment:
    """Every plugin that cannot be used, each in a distribution of its own, and a good one among them."""
    for name, (value, source, _) in BROKEN.items():
        modules = {source_name(value): source} if name not in ("absent", "nameless") else {}
        environment.install(f"petl-{name}", {name: value}, modules)
    environment.install("petl-good", {"Good": "petl_good:Good"}, {"petl_good": method("Good")})
    environment.install("petl-false", {"RepAdapter": "petl_false:False_"}, {"petl_false": method("False_")})
    # Its name is free, but configuration files name methods by their class.
    environment.install("petl-double", {"Double": "petl_double:RepAdapter"}, {"petl_double": method("RepAdapter")})
    environment.install("petl-bare", {"Bare": "petl_bare:Bare"}, {"petl_bare": method("Bare")}, metadata=None)
    latin = "Metadata-Version: 2.1\nName: petl-latin\nAuthor: Jos\udce9\n"
    environment.install("petl-latin", {"Latin": "petl_latin:Latin"}, {"petl_latin": method("Latin")}, metadata=latin)
    environment.install("petl-blank", {"Blank": "petl_blank:Blank"}, {"petl_blank": method("Blank")}, metadata="\n")
    return environment


@pytest.fixture(params=["one folder", "two folders", "one folder, later first"])
def twins(request: pytest.FixtureRequest, environment: Environment) -> Iterator[Environment]:
    """Two distributions with one name, petl-a in front of petl-b."""
    folders = ("first", "second") if request.param == "two folders" else ("site", "site")
    both = [("petl-a", "petl_a", folders[0]), ("petl-b", "petl_b", folders[1])]
    for distribution, module, folder in reversed(both) if "later" in request.param else both:
        environment.install(distribution, {"ia3": f"{module}:IA3"}, {module: method("IA3")}, folder)
    return environment
