"""What a file or a checkpoint records of the task that made it, compared with the task that is to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytorch_lightning.utilities.rank_zero import rank_zero_warn  # type: ignore[attr-defined]

from lightning_petl.backbones.records import check_record, differences, shown
from lightning_petl.data.notices import DataWarning
from lightning_petl.errors import ConfigError
from lightning_petl.plugins import name_of
from lightning_petl.store import FORMAT, MERGED_FORMAT
from lightning_petl.tensorfile import Header, read_header

if TYPE_CHECKING:
    from lightning_petl.tasks.task import PETLTask


def check_weights(path: str, task: PETLTask) -> Header:
    """Compares a file's method and classes with a task before any model is built, and returns the file's header.

    Raises:
        AdapterFileError: The file is damaged.
        ConfigError: It belongs to another method or other classes.
    """
    header = read_header(path)
    if header["format"] not in (FORMAT, MERGED_FORMAT):
        raise ConfigError(f"format {header['format']!r} is unknown", where=f"{path}: format")
    if header["format"] == FORMAT:  # a merged file is a plain backbone, whatever method it was merged from
        _check_method(header.get("method"), path, task)
    _check_classes(header.get("task"), path, task)
    return header


def _check_method(found: object, path: str, task: PETLTask) -> None:
    mine = {"name": name_of(type(task.method)).name, "arguments": task.method.arguments}
    for field, wanted in mine.items():
        if not isinstance(found, dict) or found.get(field) != wanted:
            theirs = found.get(field) if isinstance(found, dict) else None
            fix = f"set model.method to the file's: {theirs}"
            raise ConfigError(
                f"the file's method has {field} {theirs}, not {wanted}", where=f"{path}: method.{field}", fix=fix
            )


def _check_classes(record: object, path: str, task: PETLTask) -> None:
    classes = record.get("classes") if isinstance(record, dict) else None
    if isinstance(classes, list) and task.classes is not None and tuple(classes) != task.classes:
        counts = f"{len(classes)} classes, the data {len(task.classes)}"
        differ = sorted({str(name) for name in classes} ^ set(task.classes))
        text = f"the file has {counts}" if len(classes) != len(task.classes) else "the classes differ from the file's"
        raise ConfigError(f"{text} ({', '.join(differ[:5]) or 'in their order'})", where=f"{path}: task.classes")


def check_backbone(found: object, mine: Mapping[str, Any], what: str, where: str) -> None:
    """Compares the record of a backbone with the task's, and says so where it does not tell enough.

    Raises:
        ConfigError: See `check_record`.
    """
    record = found if isinstance(found, Mapping) else {}
    if not isinstance(record.get("arguments"), Mapping):
        rank_zero_warn(
            f"the {what} does not record how its backbone was built: its weights alone are compared with this one's "
            f"[{where}.arguments]",
            category=DataWarning,
        )
    check_record(record, mine, what, where)


def warn_of_inputs(found: object, mine: Mapping[str, Any], what: str) -> None:
    """Says where samples become inputs in another way than was recorded, which is allowed: a larger size, for one.

    Args:
        found: The record of a task; parts that it lacks are not compared.
        mine: What the data module says of how samples become inputs.
        what: What recorded it, for messages.
    """
    parts = found if isinstance(found, Mapping) else {}
    known = {part: settings for part, settings in mine.items() if isinstance(parts.get(part), Mapping)}
    for setting, (recorded, used) in differences({part: parts[part] for part in known}, known).items():
        part, _, name = setting.partition(".")
        of = "model's input" if part == "input" else part
        rank_zero_warn(
            f"{name} of the {of} is {shown(used)}, and was {shown(recorded)} when {what} was trained",
            category=DataWarning,
        )
