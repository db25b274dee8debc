"""The folder in which PEFT keeps a LoRA: its configuration as a closed schema, its tensors, and the modules it means.

PEFT itself is not needed. What it does with each key is written down here once, so that a key which would change the
adapter's map is handled exactly or refused by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_petl.errors import AdapterFileError
from lightning_petl.tensorfile import refuse_non_finite, replace

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""In front of every tensor's name: PEFT's wrapper, and its own model inside."""

# What only says where an adapter comes from, and settings of variants that are refused where they are on.
_CHANGES_NOTHING = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "megatron_core", "peft_version", "qalora_group_size",
    "revision", "runtime_config", "task_type",
}  # fmt: skip
_REFUSED = {
    "use_dora": "DoRA normalises the merged weight, which is not of low rank",
    "use_qalora": "QA-LoRA pools the inputs",
    "fan_in_fan_out": "it transposes weights that no layer here has transposed",
    "layer_replication": "it repeats layers of the backbone",
    "target_parameters": "it adapts parameters and not layers",
    "trainable_token_indices": "it trains rows of an embedding",
    "alora_invocation_tokens": "it adapts some of the tokens only",
}
_OTHER = "this key is not known to leave the adapter's map as it is"
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal")
"""Values of ``init_lora_weights`` that leave the frozen weights as they are."""


@dataclass(frozen=True)
class PEFTConfig:
    """What PEFT's configuration says of a LoRA; module paths are those of the plain model.

    Attributes:
        rank: Rank of layers that no pattern names.
        alpha: Alpha of these.
        dropout: Probability of dropping an input in training.
        bias: Whether each pair has a bias (``lora_bias``).
        rank_stabilised: Whether the scale is ``alpha / √rank`` and not ``alpha / rank``.
        targets: Modules to adapt: an expression that matches in full, or ends of paths.
        excluded: Modules not to adapt, in the same way.
        layer_indices: Where given, the numbers of the layers to adapt.
        layer_names: What stands in front of these numbers.
        ranks: Ranks of some layers, by expression.
        alphas: Alphas of some layers, by expression.
        saved: Ends of the paths of modules that are stored whole.
    """

    rank: int
    alpha: float
    dropout: float
    bias: bool
    rank_stabilised: bool
    targets: str | tuple[str, ...]
    excluded: str | tuple[str, ...]
    layer_indices: tuple[int, ...]
    layer_names: tuple[str, ...]
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    saved: tuple[str, ...]

    def rank_of(self, path: str) -> int:
        """Rank of an adapted layer."""
        return int(_by_pattern(self.ranks, path, self.rank))

    def scale_of(self, path: str) -> float:
        """Factor of an adapted layer's branch."""
        rank = self.rank_of(path)
        return _by_pattern(self.alphas, path, self.alpha) / (math.sqrt(rank) if self.rank_stabilised else rank)

    def adapts(self, path: str) -> bool:
        """Whether PEFT adapts the module at a path."""
        if self.excluded and _names(self.excluded, path):
            return False
        if any(re.match(rf"(^|.*\.){name}($|\..*)", path) for name in self.saved):
            return False
        if isinstance(self.targets, str) or path in self.targets:  # then the numbers of layers are not looked at
            return _names(self.targets, path)
        return _names(self.targets, path) and (not self.layer_indices or self._layer_index(path) in self.layer_indices)

    def _layer_index(self, path: str) -> int | None:
        patterns = [rf"(?:^|.*?\.){name}\.(\d+)\." for name in self.layer_names] or [r".*?\.[^.]*\.(\d+)\."]
        found = next(filter(None, (re.match(pattern, path) for pattern in patterns)), None)
        return int(found[1]) if found else None

    def saves(self, path: str) -> bool:
        """Whether PEFT stores the module at a path whole; it compares ends of names, within words too."""
        return any(path.endswith(name) for name in self.saved)


def _names(modules: str | tuple[str, ...], path: str) -> bool:
    if isinstance(modules, str):
        return re.fullmatch(modules, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in modules)


def _by_pattern(patterns: Mapping[str, float], path: str, default: float) -> float:
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), default)


def parse(config: Mapping[str, Any], where: str) -> PEFTConfig:
    """A configuration as PEFT writes it, once every key of it is known not to be passed over.

    Raises:
        AdapterFileError: A key is refused, missing, or of a wrong type; the text names it.
    """
    field = _Fields(config, where)
    if config.get("peft_type") != "LORA":
        raise field.error("peft_type", f"only LoRA adapters can be read, this is {config.get('peft_type')!r}")
    parsed = PEFTConfig(
        rank=field.of("r", _is_rank, 8),
        alpha=field.of("lora_alpha", _is_number, 8),
        dropout=field.of("lora_dropout", lambda value: _is_number(value) and 0 <= value < 1, 0.0),
        bias=field.of("lora_bias", _is_flag, False),
        rank_stabilised=field.of("use_rslora", _is_flag, False),
        targets=field.modules("target_modules"),
        excluded=field.modules("exclude_modules"),
        layer_indices=field.items("layers_to_transform", _is_index),
        layer_names=field.items("layers_pattern", lambda value: isinstance(value, str)),
        ranks=field.patterns("rank_pattern", _is_rank),
        alphas=field.patterns("alpha_pattern", _is_number),
        saved=field.items("modules_to_save", lambda value: isinstance(value, str) and value != ""),
    )
    if not parsed.targets or parsed.targets == "all-linear":
        raise field.error("target_modules", "it names no modules", "save the adapter with PEFT again, which lists them")
    field.of("bias", lambda value: value == "none", "none", "biases of the frozen layers were trained in place")
    start = "it may start from frozen weights that are changed, so the adapter would not fit the plain ones"
    field.of("init_lora_weights", lambda value: value in _PLAIN_STARTS, True, start)
    field.refuse_others()
    return parsed


def _is_rank(value: object) -> bool:
    return type(value) is int and value > 0


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_index(value: object) -> bool:
    return type(value) is int


class _Fields:
    """Reads keys and remembers them, so that what is left over can be told."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config, self.where = config, where
        self.known = {"peft_type"}

    def error(self, key: str, what: str, fix: str = "") -> AdapterFileError:
        return AdapterFileError(what, where=f"{self.where}: {key}", fix=fix)

    def of(
        self, key: str, fits: Callable[[Any], bool], default: Any, reason: str = "it is not what PEFT writes"
    ) -> Any:
        """A value, or PEFT's own default."""
        self.known.add(key)
        value = self.config.get(key)
        if value is None:
            return default
        if not fits(value):
            raise self.error(key, f"{key} is {value!r}: {reason}")
        return value

    def items(self, key: str, fits: Callable[[Any], bool]) -> tuple[Any, ...]:
        """A list of values, or a single one."""
        value = self.of(key, lambda value: True, ())
        values = tuple(value) if isinstance(value, list | tuple) else (value,)
        if not all(map(fits, values)):
            raise self.error(key, f"{key} is {value!r}: it is not what PEFT writes")
        return values

    def modules(self, key: str) -> str | tuple[str, ...]:
        """An expression, or ends of paths."""
        value = self.config.get(key)
        if not isinstance(value, str):
            return self.items(key, lambda item: isinstance(item, str))
        self.known.add(key)
        self._compile(key, value)
        return value

    def patterns(self, key: str, fits: Callable[[Any], bool]) -> dict[str, Any]:
        """Values by expression."""
        value = self.of(key, lambda value: isinstance(value, dict) and all(map(fits, value.values())), {})
        for pattern in value:
            self._compile(key, pattern)
        return dict(value)

    def _compile(self, key: str, pattern: str) -> None:
        try:
            re.compile(pattern)
        except re.error as error:
            raise self.error(key, f"{pattern!r} is no regular expression: {error}") from None

    def refuse_others(self) -> None:
        """Refuses keys that are on and not handled; empty values are off."""
        for key in sorted(self.config.keys() - self.known - _CHANGES_NOTHING):
            value = self.config[key]
            if value not in (None, False, "", [], {}):
                raise self.error(key, f"{key} is {value!r}: {_REFUSED.get(key, _OTHER)}")


def read(folder: Path) -> tuple[PEFTConfig, dict[str, Tensor]]:
    """The configuration and the tensors of a folder, by their names in the plain model.

    Raises:
        AdapterFileError: A file is missing or damaged, a key is refused, or a tensor is not finite.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterFileError("no adapter of PEFT: no such file", where=str(path), fix="give PEFT's folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterFileError(f"cannot be read: {error}", where=str(path)) from None
    if not isinstance(config, dict):
        raise AdapterFileError("it holds no JSON object", where=str(path))
    return parse(config, str(path)), _read_tensors(folder / WEIGHTS)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError:
        fix = "save it with PEFT's safe_serialization=True: pickled files are not opened"
        raise AdapterFileError("no such file", where=str(path), fix=fix) from None
    except (SafetensorError, OSError) as error:
        raise AdapterFileError(f"damaged: {error}", where=str(path)) from None
    foreign = sorted(name for name in tensors if not name.startswith(PREFIX))
    if foreign:
        raise AdapterFileError(f"tensor {foreign[0]} is not named as PEFT does", where=f"{path}: {foreign[0]}")
    refuse_non_finite(tensors, str(path))
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def config_of(
    rank: int, alpha: float, bias: bool, targets: Sequence[str], saved: Sequence[str], modules: Iterable[str]
) -> dict[str, Any]:
    """A configuration that means exactly the layers ``targets``, by their full paths.

    PEFT compares ends of paths; where that would mean other modules too, an expression is written in place of the list.

    Args:
        rank: Rank of every pair.
        alpha: Alpha of every pair.
        bias: Whether every pair has a bias.
        targets: Paths of the adapted layers.
        saved: Names of the modules that are stored whole.
        modules: Paths of all modules of the model.
    """
    config: dict[str, Any] = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": None, "revision": None, "auto_mapping": None,
        "inference_mode": True, "r": rank, "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0, "target_modules": list(targets), "modules_to_save": list(saved) or None, "bias": "none",
        "use_rslora": False, "use_dora": False, "fan_in_fan_out": False, "init_lora_weights": True,
        "rank_pattern": {}, "alpha_pattern": {}, "layers_to_transform": None, "layers_pattern": None,
    }  # fmt: skip
    if bias:
        config["lora_bias"] = True  # left out where it is off, since PEFT before 0.14 does not know it
    if any(_names(tuple(targets), path) for path in set(modules) - set(targets)):
        config["target_modules"] = "|".join(re.escape(path) for path in targets)
    return config


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], readme: str) -> None:
    """Writes a folder; the configuration goes last, so that PEFT finds no adapter where one is half written.

    Args:
        folder: The folder; of an adapter that it holds, each file is replaced.
        config: What `config_of` gives.
        tensors: Tensors by their names in the plain model.
        readme: Text for people.

    Raises:
        AdapterFileError: A tensor is not finite, or the folder cannot be written.
    """
    owned = {f"{PREFIX}{name}": tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    refuse_non_finite(owned, str(folder / WEIGHTS))
    if (folder / CONFIG).is_file():
        (folder / CONFIG).unlink()
    replace(folder / WEIGHTS, lambda temporary: save_file(owned, temporary, {"format": "pt"}))
    replace(folder / "README.md", _writer(readme))
    replace(folder / CONFIG, _writer(json.dumps(config, indent=2, sort_keys=True) + "\n"))


def _writer(text: str) -> Callable[[Path], None]:
    def write_text(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    return write_text
