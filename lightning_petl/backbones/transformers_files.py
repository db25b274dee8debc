"""Weights for models of the transformers library: every name and shape is the model's own, or the file is refused."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_petl.backbones import videomae_files
from lightning_petl.errors import ConfigError

logger = logging.getLogger(__name__)

_HEAD = re.compile(r"classifier\..*")
_POOLED = re.compile(r"videomae\.layernorm\..*")
_NEW = re.compile(r"fc_norm\..*")
# What the same tensors may be run with in another way; all else of a configuration shows in names and shapes.
# Positions of VideoMAE are computed over the patches of a frame, and frame by frame: with another size of image,
# patches get positions of others; with another number of frames, each keeps its own.
_MEANING = ("num_attention_heads", "hidden_act", "layer_norm_eps", "attention_type")
_SIZES = ("image_size", "patch_size", "tubelet_size")
_FIX = "set model.backbone, model.backbone_args and model.frames to the architecture of the file"


def load_weights(model: nn.Module, headless: nn.Module, source: str, kind: str) -> None:
    """Fills a model, all but its classifier, which stays new.

    Of a pre-training file, the decoder is left out, and with mean pooling the final norm, in whose place ``fc_norm``
    stands and starts new; both are told in a log line.

    Args:
        model: The model to fill.
        headless: The same without a classifier, which is overwritten.
        source: A folder or file in the library's layout, a file of VideoMAE's own code, or an id on the hub.
        kind: The library's word for the model, such as ``videomae``.

    Raises:
        ConfigError: There is no such file, it cannot be read, or it is not this model's.
    """
    loaded, info = _load(headless, source, kind)
    unexpected, missing = set(info["unexpected_keys"]), set(info["missing_keys"])
    pretraining = any(videomae_files.DECODER.fullmatch(name) for name in unexpected)
    mean = bool(getattr(model.config, "use_mean_pooling", False))
    unused = {name for name in unexpected if _is_unused(name, kind, mean)}
    fresh = {name for name in missing if pretraining and mean and _NEW.fullmatch(name)}
    for what, names in (("lacks", missing - fresh), ("has unknown", unexpected - unused)):
        if names:
            raise ConfigError(f"the file of weights {what} {min(names)}", where=source, fix=_FIX)
    for name, found, wanted in sorted(info["mismatched_keys"]):
        shapes = f"{tuple(found)}, the model's is {tuple(wanted)}"
        raise ConfigError(f"{name} in the file is {shapes}", where=source, fix=_FIX)
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in loaded.state_dict().items():
            own[name].copy_(tensor)
    _tell(source, unused, fresh)


def _is_unused(name: str, kind: str, mean: bool) -> bool:
    of_pretraining = videomae_files.DECODER.fullmatch(name) or (mean and _POOLED.fullmatch(name))
    return bool(_HEAD.fullmatch(name) or (kind == "videomae" and of_pretraining))


def _tell(source: str, unused: Iterable[str], fresh: Iterable[str]) -> None:
    parts = sorted({_part(name) for name in unused})
    if parts:
        logger.info("%s: left out %s", source, ", ".join(parts))
    if new := sorted(fresh):
        logger.warning(
            '%s lacks %s: new, and to be trained with model.train_parameters ["fc_norm.*"]', source, ", ".join(new)
        )


def _part(name: str) -> str:
    """What a name is told as: one word for all tensors of a decoder or classifier."""
    first = name.partition(".")[0]
    return first if first != "videomae" else name.rpartition(".")[0]


def _load(headless: nn.Module, source: str, kind: str) -> tuple[nn.Module, dict[str, Any]]:
    """Runs the library's own loading, which knows the names of its earlier versions, and says what it found."""
    path, settings = Path(source), {"output_loading_info": True, "ignore_mismatched_sizes": True}
    config: Any = headless.config
    load = type(headless).from_pretrained  # type: ignore[attr-defined]
    with _quiet():
        try:
            if path.is_file():
                state = _read(path, kind)
                return load(None, config=config, state_dict=state, **settings)  # type: ignore[no-any-return]
            if not path.is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
                fix = "give a file, a folder with config.json, or an id on the hub"
                raise ConfigError(f"no weights {source}", where="model.pretrained", fix=fix)
            _check_meaning(config, source, kind)
            return load(source, config=config, dtype=torch.float32, **settings)  # type: ignore[no-any-return]
        except ConfigError:
            raise
        except Exception as error:  # files, networks and archives fail in many ways
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            fix = "name a local file or folder with model.pretrained, or false for none"
            raise ConfigError(f"cannot read weights: {reason}", where=source, fix=fix) from error


def _check_meaning(config: Any, source: str, kind: str) -> None:
    """Compares what names and shapes do not show with the configuration beside the weights.

    Raises:
        ConfigError: A value differs.
    """
    theirs, _ = type(config).get_config_dict(source)
    found = theirs.get("model_type")
    if found != kind:
        raise ConfigError(f"the weights are of {found!r}, not {kind!r}", where=source, fix=_FIX)
    stored = type(config).from_dict(theirs)
    for name in (*_MEANING, *_SIZES):
        wanted, mine = (_number(getattr(one, name, None)) for one in (stored, config))
        if wanted != mine:
            fix = f"set model.backbone_args.{name} to {wanted}"
            raise ConfigError(f"{name} of the weights is {wanted}, the model's {mine}", where=source, fix=fix)


def _number(value: Any) -> Any:
    """A size that is given as a pair of one number, as that number; other values as they are."""
    if not isinstance(value, list | tuple):
        return value
    return value[0] if len(set(value)) == 1 else list(value)


def _read(path: Path, kind: str) -> dict[str, Tensor]:
    """Tensors of a file, under the library's names."""
    if path.suffix == ".safetensors":
        state: Any = load_file(path)
    else:
        # The authors' code stores the options of its command line beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
        state = next((state[key] for key in ("model", "module", "state_dict") if key in state), state)
    if not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ConfigError("the file holds no tensors by name", where=str(path), fix="give a state dict")
    original = kind == "videomae" and videomae_files.is_original(state)
    return videomae_files.converted(state, str(path)) if original else state


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own report, which names the classifier as a fault."""
    from transformers.utils import logging as reports

    level = reports.get_verbosity()
    reports.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        reports.set_verbosity(level)
