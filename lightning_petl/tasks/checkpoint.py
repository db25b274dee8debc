"""Checkpoints of what trains: small, made of tensors and plain values, and compared name by name when loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lightning_petl.errors import AdapterFileError, BackboneMismatch, ConfigError
from lightning_petl.injection import trainable
from lightning_petl.plugins import name_of
from lightning_petl.store import fingerprint, plain_name, tensor_digests
from lightning_petl.tasks import recorded
from lightning_petl.wrappers import adapted_layers

if TYPE_CHECKING:
    from lightning_petl.tasks.task import PETLTask

RECORD = "lightning_petl"


def trains(module: nn.Module) -> bool:
    """Whether a module has a parameter of its own that trains."""
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def within(path: str, head: str) -> bool:
    """Whether a module path is the head's, or inside the head."""
    return path == head or path.startswith(f"{head}.")


def kept_names(task: PETLTask) -> set[str]:
    """Names, in the plain backbone, of its tensors that fit may change: what trains, and statistics that drift."""
    statistics = {
        f"{path}.{name}"
        for path, module in task.backbone.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        and (task.backbone_mode == "train" or trains(module) or within(path, task.head))
        for name, _ in module.named_buffers(recurse=False)
    }
    adapted = adapted_layers(task.backbone)
    plain = {plain_name(name, adapted) for name in statistics | set(trainable(task.backbone))}
    return {name for name in plain if name is not None}


def _expected(task: PETLTask) -> set[str]:
    """Keys of the task's state dict that a checkpoint holds, adapters and drifting statistics included."""
    adapted, kept = adapted_layers(task.backbone), kept_names(task)
    backbone = {name: plain_name(name, adapted) for name in task.backbone.state_dict()}
    training = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    own = {f"backbone.{name}" for name, plain in backbone.items() if plain is None or plain in kept}
    return set(task.state_dict()) & (training | own)


def reduce(checkpoint: dict[str, Any], task: PETLTask) -> None:
    """Drops the frozen tensors from a checkpoint and adds the record."""
    keep = _expected(task)
    checkpoint["state_dict"] = {name: tensor for name, tensor in checkpoint["state_dict"].items() if name in keep}
    checkpoint[RECORD] = record(task)


def record(task: PETLTask) -> dict[str, Any]:
    """What a checkpoint belongs to, in plain values."""
    frozen = fingerprint(tensor_digests(task.backbone, leave_out=kept_names(task)))
    method = name_of(type(task.method))
    return {
        "method.name": method.name,
        "method.distribution": method.distribution,
        "method.arguments": task.method.arguments,
        "num_classes": task.num_classes,
        "classes": None if task.classes is None else list(task.classes),
        "backbone": task.architecture.record(),
        "backbone.fingerprint": frozen,
        "inputs": task.inputs_record(),
    }


def check(checkpoint: dict[str, Any], task: PETLTask) -> None:
    """Compares a checkpoint with the task that is to continue from it.

    Raises:
        AdapterFileError: It is no checkpoint of this package, or its tensors are not those that the task trains.
        ConfigError: It was made with another method, backbone or head.
        BackboneMismatch: The frozen weights are others.
    """
    if task.weights is not None:
        fix = "give one of model.weights and ckpt_path"
        raise ConfigError("a checkpoint would be loaded over model.weights", where="ckpt_path", fix=fix)
    found = checkpoint.get(RECORD)
    if not isinstance(found, dict):
        raise AdapterFileError("the checkpoint is not one of lightning-petl", where="ckpt_path")
    mine = record(task)
    recorded.warn_of_inputs(found.get("inputs"), mine.pop("inputs"), "the checkpoint")
    for field, wanted in mine.items():
        theirs = found.get(field)
        if field == "backbone":
            recorded.check_backbone(theirs, wanted, "checkpoint", "ckpt_path: backbone")
            continue
        if theirs != wanted and field == "backbone.fingerprint":
            raise BackboneMismatch("the checkpoint was trained on other frozen weights", where=f"ckpt_path: {field}")
        if theirs != wanted:
            fix = "continue with the settings that it was made with"
            raise ConfigError(
                f"the checkpoint has {field} {theirs}, not {wanted}", where=f"ckpt_path: {field}", fix=fix
            )
    _check_tensors(checkpoint.get("state_dict"), task)


def _check_tensors(found: object, task: PETLTask) -> None:
    """Compares names and shapes in both directions; Lightning itself would load what fits and leave the rest."""
    if not isinstance(found, dict):
        raise AdapterFileError("the checkpoint holds no tensors", where="ckpt_path: state_dict")
    wrong = sorted(_expected(task) ^ set(found))
    if wrong:
        raise AdapterFileError(
            f"{len(wrong)} tensors are missing or unknown, {wrong[0]} first", where=f"ckpt_path: {wrong[0]}"
        )
    state = task.state_dict()
    for name, tensor in found.items():
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        if shape != tuple(state[name].shape):
            raise AdapterFileError(
                f"{name} is {shape}, this task needs {tuple(state[name].shape)}", where=f"ckpt_path: {name}"
            )
