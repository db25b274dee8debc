"""`lightning-petl fit | validate | test | predict`: LightningCLI over the tasks, the data modules and the methods."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException

from lightning_petl.callbacks import (
    BestCheckpoint,
    ClassScoresWriter,
    MaskWriter,
    Overlays,
    PredictionWriter,
    Reparameterize,
    ResultsWriter,
)
from lightning_petl.cli import Stopped, cause, preflight
from lightning_petl.cli.config_files import ConfigFiles
from lightning_petl.cli.messages import explain, unusable_class
from lightning_petl.data import (
    ADE20KData,
    CityscapesData,
    DigitsData,
    HMDB51Data,
    ImageFolderData,
    ImageListData,
    KineticsData,
    PascalVOCData,
    SegmentationFolderData,
    SomethingSomethingV2Data,
    UCF101Data,
    VideoListData,
)
from lightning_petl.errors import ConfigError, PETLError
from lightning_petl.plugins import Methods, list_methods, load_method, unknown_method
from lightning_petl.tasks import PETLTask

# Short class names in YAML resolve among the classes that are imported: these and the installed methods.
DATA_MODULES = (
    ImageFolderData,
    ImageListData,
    DigitsData,
    ADE20KData,
    SegmentationFolderData,
    PascalVOCData,
    CityscapesData,
    VideoListData,
    KineticsData,
    SomethingSomethingV2Data,
    HMDB51Data,
    UCF101Data,
)
_TASK, _DATA = "lightning_petl.tasks.ClassificationTask", "lightning_petl.data.ImageFolderData"


def run(arguments: list[str]) -> int:
    """Runs one Trainer command."""
    # A few loader workers on a small machine are right for small images; the advice would be printed in every run.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*number of training batches.*smaller than the logging interval.*")
    files = ConfigFiles(arguments)
    methods = list_methods()
    assert isinstance(methods, Methods)
    # In sys.argv, too: processes that a distributed strategy starts run this command again from there.
    before, sys.argv[1:] = sys.argv[1:], _resolve_method(arguments, methods)
    try:
        _cli(files)
    except Exception as error:
        found = cause(error)
        told = found if isinstance(found, PETLError) else unusable_class(str(error), found)
        if told is None:
            raise
        raise files.located(told) from error
    finally:
        sys.argv[1:] = before
    return 0


def _cli(files: ConfigFiles) -> PETLCLI:
    return PETLCLI(
        files,
        PETLTask,
        pl.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_class=Parser,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        save_config_kwargs={"overwrite": True},
    )


def _resolve_method(arguments: list[str], methods: Methods) -> list[str]:
    """Replaces a method's name, or ``distribution:name``, on the command line by its import path.

    Raises:
        ConfigError: No such method is installed.
        PluginError: It cannot be used.
    """
    resolved = list(arguments)
    for index, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option not in ("--model.method", "--model.method.help", "--model.init_args.method"):
            continue
        place = index if equals else index + 1
        name = value if equals else (arguments[place] if place < len(arguments) else "")
        if name not in methods:
            if not re.fullmatch(r"(?:[\w.-]+:)?\w+", name):
                continue  # an import path, or a value with its arguments
            raise ConfigError(f"unknown method {name!r}", where="model.method", fix=unknown_method(name))
        cls = load_method(name)
        resolved[place] = (f"{option}=" if equals else "") + f"{cls.__module__}.{cls.__qualname__}"
    return resolved


class Parser(LightningArgumentParser):
    """LightningCLI's parser, with whole option names only, and errors of one line that name the nearest known names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation is how a typing error passes for another option.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Turns the parser's message into one line.

        Raises:
            ConfigError: Always.
        """
        raise explain(message, ex, self)


class PETLCLI(LightningCLI):
    """LightningCLI with a task and data module by default, and the callbacks that leave a run's files.

    Args:
        files: What the command line sets.
        *args: Of LightningCLI.
        **kwargs: Of LightningCLI.
    """

    def __init__(self, files: ConfigFiles, *args: Any, **kwargs: Any) -> None:
        self._files = files
        super().__init__(*args, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what is configurable besides model, data and trainer."""
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.add_lightning_class_args(Reparameterize, "reparameterize")
        parser.add_lightning_class_args(Overlays, "overlays")
        # Only where none is chosen: the parser hands a default class's own defaults on to the class that replaces it,
        # so that a list called train.json would be looked for as the image folder's train.
        defaults = {"model": _TASK, "data": _DATA}
        parser.set_defaults({k: {"class_path": cls} for k, cls in defaults.items() if not self._files.names(k)})
        parser.link_arguments("data.classes", "model.init_args.classes", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Leaves the settings as they were given; a checkpoint's own would replace them without a word."""

    def before_instantiate_classes(self) -> None:
        """Finds what can be found wrong before a data set is listed or a model is built."""
        model, ckpt_path = self._get(self.config, "model"), self._get(self.config, "ckpt_path")
        preflight.check_frames(model, self._get(self.config, "data"))
        weights = model.get("init_args", {}).get("weights")
        preflight.check(str(self.subcommand), vars(self._get(self.config, "trainer")), ckpt_path, weights)

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs a Trainer command.

        Raises:
            Stopped: A signal ended it. Lightning's own exits would pass for success, or for any error.
        """
        try:
            super()._run_subcommand(subcommand)
        except SystemExit as exit_:
            if isinstance(exit_.__context__, KeyboardInterrupt):
                raise Stopped(self._told(f"{subcommand} was interrupted"), 130) from None
            if not isinstance(exit_, SIGTERMException):
                raise
        if self.trainer.received_sigterm:
            raise Stopped(self._told(f"SIGTERM ended {subcommand}"), 143)

    def _told(self, what: str) -> str:
        """What ended a run, with its last checkpoint, if it left one."""
        last = getattr(self.trainer.checkpoint_callback, "last_model_path", "")
        return f"{what} [{self.trainer.default_root_dir}]" + (f" - go on with --ckpt_path {last}" if last else "")

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Gives the run its folder, and the callbacks that write into it."""
        config = self._get(self.config_init, "trainer")
        root = preflight.run_folder(config)
        if config["logger"] in (None, True):
            config["logger"] = CSVLogger(str(root), name="", version=_free_version(root))
        config["default_root_dir"] = str(root)
        trainer = super().instantiate_trainer(**kwargs)
        writers = [ResultsWriter(), PredictionWriter(), MaskWriter(), ClassScoresWriter()]
        trainer.callbacks += [*writers, preflight.MonitorCheck()]  # type: ignore[attr-defined]
        return trainer


def _free_version(root: Path) -> str:
    """Where in a folder a run goes: the folder itself, or the first free ``version_N`` where it holds a run already."""
    if not (root / "config.yaml").exists() and not (root / "results.json").exists():
        return ""
    number = 1
    while (root / f"version_{number}").exists():
        number += 1
    return f"version_{number}"
