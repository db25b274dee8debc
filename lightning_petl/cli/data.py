"""`lightning-petl data make NAME OUT` and `lightning-petl data verify PATH`: data sets made, and bad files found."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lightning_petl.cli.arguments import Parser
from lightning_petl.errors import ConfigError, DataError, PETLError

if TYPE_CHECKING:
    from lightning_petl.data.verification import Check, Report


class Maker(NamedTuple):
    """What `data make` writes.

    Attributes:
        module: Where its ``main(arguments, prog)`` is.
        text: What it is, for the list.
    """

    module: str
    text: str


MAKERS = {
    "moving-digits": Maker("lightning_petl.demo.moving_digits", "clips of digits whose class is what happens in time"),
    "digit-scenes": Maker("lightning_petl.demo.digit_scenes", "digits over photographs, and masks: ADE20K's layout"),
}
"""The data sets that `data make` knows, by name."""

_USAGE = """usage: lightning-petl data make NAME OUT [options]
       lightning-petl data verify PATH [options]

Makes small data sets, and finds the bad files of large ones.

what `make` makes:
"""


def run(arguments: list[str]) -> int:
    """Runs `make` or `verify`."""
    commands: dict[str, Callable[[list[str]], int]] = {"make": _make, "verify": _verify}
    if len(arguments) < 2 or arguments[1] in ("-h", "--help"):
        print(_USAGE + "".join(f"  {name:<14} {maker.text}\n" for name, maker in MAKERS.items()), end="")
        return 0 if len(arguments) > 1 else 2
    if arguments[1] not in commands:
        raise PETLError(f"unknown command 'data {arguments[1]}'", where="command", fix="choose make or verify")
    return commands[arguments[1]](arguments[2:])


def _make(arguments: list[str]) -> int:
    parser = Parser("lightning-petl data make", description="Makes a data set; `NAME --help` says more.")
    parser.add_argument("name", choices=MAKERS, metavar="NAME", help=", ".join(MAKERS))
    name = parser.parse_args(arguments[:1]).name
    import_module(MAKERS[name].module).main(arguments[1:], f"lightning-petl data make {name}")
    return 0


def _verify(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    for option, value, least in (("workers", options.workers, 1), ("timeout", options.timeout, 1)):
        if not value >= least:
            raise ConfigError(f"{option} is {value}", where=f"--{option}", fix=f"give {least} or more")
    if options.manifest and options.against:
        raise ConfigError("a manifest is written or compared with", where="--manifest", fix="give one of the two")
    if options.manifest and options.manifest.exists():
        from lightning_petl.data.manifest import exists

        raise exists(options.manifest)
    return verification(options)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "lightning-petl data verify",
        description="Decodes every image and every frame of a tree, prints each bad file with its reason, and exits "
        "with 1 if there is one.",
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="a folder, one file, or a list of `path label` lines")
    parser.add_argument("--root", type=Path, help="folder that the paths of a list are relative to (default: its own)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds without progress on a file (default: 60)")
    parser.add_argument("--reader", default="auto", help="auto, pyav or decord (default: auto)")
    parser.add_argument("--random-access", action="store_true", help="compare sought frames with those read in order")
    parser.add_argument("--manifest", type=Path, metavar="FILE", help="write size, date, digest, frames of all files")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare the files with a manifest's digests")
    parser.add_argument("--quick", action="store_true", help="with --against: compare size and date alone")
    return parser


def verification(options: argparse.Namespace) -> int:
    """Checks the files that the options name and prints what is bad; returns the exit status."""
    from lightning_petl.data import manifest
    from lightning_petl.data.verification import Check, Report
    from lightning_petl.data.video.decoding import choose

    root, paths, missing = _files(options.path, options.root)
    reports = [Report(path, "the file does not exist") for path in missing]
    judge: Callable[[Report], Report] = _as_found
    if options.against:
        known = manifest.read(options.against, root)
        reports += [Report(path, "the file is missing") for path in sorted(known.keys() - {*paths, *missing})]
        check = Check(choose(options.reader), decode=False)
        if options.quick:
            reports += [Report(path, manifest.changes(known, path)) for path in paths]
            paths = []
        judge = partial(manifest.judged, known)
    elif options.quick:
        raise ConfigError("there is nothing to compare with", where="--quick", fix="give --against FILE")
    else:
        check = Check(choose(options.reader), options.random_access)
    for report in reports:
        _say(report, print)
    reports += _checked(paths, check, options, judge)
    bad = sum(bool(report.fault) for report in reports)
    decoded = sum(report.frames for report in reports)
    print(f"{len(reports)} files, {bad} bad" + ("" if options.against else f", {decoded} images and frames decoded"))
    if options.manifest:
        manifest.write(options.manifest, root, [report for report in reports if not report.fault])
        print(f"{options.manifest}: {len(reports) - bad} good files")
    return 1 if bad else 0


def _checked(
    paths: Sequence[str], check: Check, options: argparse.Namespace, judge: Callable[[Report], Report]
) -> list[Report]:
    """Checks files in processes, with a bar, and says what is bad as it is found."""
    from tqdm import tqdm

    from lightning_petl.data.verification import verify

    reports: list[Report] = []
    with tqdm(total=len(paths), unit="file", disable=None) as bar:  # no bar where nobody watches
        for found in verify(paths, check, options.workers, options.timeout):
            reports.append(judge(found))
            _say(reports[-1], bar.write)
            bar.update()
    return reports


def _as_found(report: Report) -> Report:
    return report


def _say(report: Report, write: Callable[[str], object]) -> None:
    if report.fault:
        write(f"{report.path}: {report.fault}")


def _files(path: Path, root: Path | None) -> tuple[Path, list[str], list[str]]:
    """The folder that names are relative to, the files to check, and the files of a list that do not exist.

    Raises:
        DataError: There is nothing to check.
    """
    from lightning_petl.data.folder_tree import files_below
    from lightning_petl.data.images import EXTENSIONS as IMAGE_EXTENSIONS
    from lightning_petl.data.list_file import read_list
    from lightning_petl.data.sources import Sample
    from lightning_petl.data.video.files import EXTENSIONS as VIDEO_EXTENSIONS

    known = IMAGE_EXTENSIONS | VIDEO_EXTENSIONS
    missing: list[str] = []
    if path.is_dir():
        root, paths = path, sorted(name for name in files_below(path) if Path(name).suffix.lower() in known)
    elif path.suffix.lower() in known:
        root, paths = path.parent, [str(path)]
    else:
        root = path.parent if root is None else root
        gone: list[Sample] = []
        samples = read_list(path, root, None, True, "PATH", gone)
        paths, missing = list(dict.fromkeys(sample.path for sample in samples)), [sample.path for sample in gone]
    if not paths and not missing:
        raise DataError(
            "there is no image and no video", where=str(path), fix=f"names end in {', '.join(sorted(known))}"
        )
    return root, [os.path.normpath(name) for name in paths], missing
