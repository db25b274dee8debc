"""What can be found wrong with a Trainer command before a data set is listed or a model is built."""

from __future__ import annotations

import difflib
import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]
from pytorch_lightning.utilities.rank_zero import rank_zero_warn  # type: ignore[attr-defined]

from lightning_petl.callbacks import BestCheckpoint
from lightning_petl.callbacks.results import probe_folder
from lightning_petl.errors import AdapterFileError, ConfigError

_KEYWORDS = ("best", "last", "hpc", "registry")
"""What ``ckpt_path`` takes besides a file; Lightning resolves these."""

# Objects of their own, or without an effect on whether a Trainer can be built.
_NOT_TRIED = ("logger", "callbacks", "profiler", "plugins", "default_root_dir", "fast_dev_run", "barebones")


def check(command: str, settings: Any, ckpt_path: Any, weights: Any) -> None:
    """Checks the run folder, the number of epochs, the checkpoint and the Trainer's settings.

    Args:
        command: The command, such as ``fit``.
        settings: The Trainer's settings, by name.
        ckpt_path: What the user gave as checkpoint, or None.
        weights: What the user gave as ``model.weights``, or None.

    Raises:
        ConfigError: One of them cannot work.
        AdapterFileError: The checkpoint cannot be read.
    """
    probe_folder(run_folder(settings))
    epochs = settings["max_epochs"]
    if command == "fit" and epochs is not None and epochs < 1:
        raise ConfigError(f"max_epochs is {epochs}", where="trainer.max_epochs", fix="give 1 or more, for the schedule")
    _check_checkpoint(ckpt_path)
    if command != "fit" and ckpt_path is None and weights is None:
        rank_zero_warn(f"{command} runs without model.weights and ckpt_path: adapters and head are as before training")
    _try_trainer({name: value for name, value in dict(settings).items() if name not in _NOT_TRIED})


def check_frames(model: Any, data: Any) -> None:
    """Gives a video model the number of frames of its clips, where it is left out.

    Raises:
        ConfigError: Both are given, and differ.
    """
    ours, theirs = model.get("init_args", {}), data.get("init_args", {})
    if "frames" not in ours or "frames" not in theirs:
        return
    if ours["frames"] is None:
        ours["frames"] = theirs["frames"]
    if ours["frames"] != theirs["frames"]:
        what = f"data.frames is {theirs['frames']}, and model.frames {ours['frames']}"
        raise ConfigError(what, where="model.frames", fix="leave model.frames out: it follows from data.frames")


def run_folder(settings: Any) -> Path:
    """The folder that a run's own folder is found in."""
    return Path(settings["default_root_dir"] or "runs")


def _check_checkpoint(path: Any) -> None:
    if path is None or str(path) in _KEYWORDS or "://" in str(path):
        return
    if not Path(path).is_file():
        raise ConfigError(f"no checkpoint {path}", where="ckpt_path", fix="give a .ckpt from a run's checkpoints/")
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a damaged archive makes the unpickler trip over
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise AdapterFileError(f"the checkpoint cannot be read: {reason}", where=f"ckpt_path: {path}") from None


def _try_trainer(settings: dict[str, Any]) -> None:
    """Builds a Trainer that does nothing, which tells at once of a device, a strategy or a number that cannot be."""
    simple = {name: value for name, value in settings.items() if value is None or _is_plain(value)}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    speaker = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    level = speaker.level
    speaker.setLevel(logging.ERROR)  # the real Trainer says the same again
    try:
        pl.Trainer(**{**simple, **quiet, "enable_model_summary": False})
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(text, where=_trainer_field(text, simple), fix="see --help for what it takes") from error
    finally:
        speaker.setLevel(level)


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str) or (isinstance(value, list) and all(map(_is_plain, value)))


def _trainer_field(text: str, settings: dict[str, Any]) -> str:
    """The setting that a message of the Trainer is about, as far as it can be told."""
    named = [name for name in settings if name in text]
    named += [name for name, value in settings.items() if isinstance(value, str) and value in text.split()]
    return f"trainer.{named[0]}" if named else "trainer"


class MonitorCheck(pl.Callback):
    """Compares what checkpoints and early stopping watch with what is logged: before an epoch, not after it."""

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks the monitored metric up.

        Raises:
            ConfigError: Validation does not log it. What training logs is not known yet, and is let through.
        """
        logged = sorted(trainer.callback_metrics)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            monitor = callback.monitor if isinstance(callback, ModelCheckpoint | EarlyStopping) else None
            if monitor is None or monitor in logged or monitor.startswith("train") or not logged:
                continue
            near = difflib.get_close_matches(monitor, logged, n=2) or logged
            fix = f"did you mean {' or '.join(near)}?"
            where = "checkpoint.monitor" if isinstance(callback, BestCheckpoint) else "trainer.callbacks.monitor"
            raise ConfigError(f"validation logs no {monitor!r}", where=where, fix=fix)
