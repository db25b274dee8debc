"""Files of the VideoMAE authors' code (arXiv 2203.12602): their names turned into those of the transformers library."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from lightning_petl.errors import ConfigError

_LAYER = "videomae.encoder.layer."
_NAMES = {
    "patch_embed.proj": "videomae.embeddings.patch_embeddings.projection",
    "fc_norm": "fc_norm",
    "norm": "videomae.layernorm",
    "head": "classifier",
}
_IN_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_BIASES = {"attn.q_bias": "attention.attention.query.bias", "attn.v_bias": "attention.attention.value.bias"}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
DECODER = re.compile(r"decoder\..*|encoder_to_decoder\..*|mask_token")
"""Tensors of pre-training alone, in both libraries' layouts."""


def is_original(names: Mapping[str, object]) -> bool:
    """Whether tensors have the names of the authors' code."""
    return any(_BLOCK.match(name.removeprefix("encoder.")) for name in names)


def converted(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The same tensors under the library's names, a fused qkv split into its three parts.

    The key has no bias in either. The decoder of a pre-training file keeps its names.

    Args:
        state: Tensors of a file, of pre-training (``encoder.blocks...``) or after fine-tuning (``blocks...``).
        where: The file, for messages.

    Raises:
        ConfigError: A name is unknown.
    """
    new: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if DECODER.fullmatch(name):
            new[name] = tensor
            continue
        plain = name.removeprefix("encoder.")
        match = _BLOCK.fullmatch(plain)
        found = _in_block(match[2], tensor) if match else _outside(plain, tensor)
        if not found:
            fix = "give a file of VideoMAE's own code, or one in the transformers library's layout"
            raise ConfigError(f"{name} is no tensor of a VideoMAE", where=where, fix=fix)
        new |= {f"{_LAYER}{match[1]}.{key}" if match else key: part for key, part in found.items()}
    return new


def _in_block(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if name == "attn.qkv.weight" and len(tensor) % 3 == 0:
        parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
        return {f"attention.attention.{part}.weight": rows for part, rows in parts}
    return {_BIASES[name]: tensor} if name in _BIASES else _renamed(name, tensor, _IN_BLOCK)


def _outside(name: str, tensor: Tensor) -> dict[str, Tensor]:
    return _renamed(name, tensor, _NAMES)


def _renamed(name: str, tensor: Tensor, names: Mapping[str, str]) -> dict[str, Tensor]:
    module, _, kind = name.rpartition(".")
    return {f"{names[module]}.{kind}": tensor} if module in names and kind in ("weight", "bias") else {}
