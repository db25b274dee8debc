"""From a model with adapters to the files that are deployed: the merged weights and the certificate of the merge."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from lightning_petl import tensorfile
from lightning_petl.backbones import Architecture
from lightning_petl.merging import Certificate, ModelError, compare, merge, outputs
from lightning_petl.store import fingerprint, load_merged, save_merged, tensor_digests

FLOAT64_INPUTS = 4
"""How many inputs are run in float64, which costs many times what the deployed dtype does."""


def publish(
    model: nn.Module,
    header: Mapping[str, object],
    out: Path,
    architecture: Architecture,
    batches: Sequence[Tensor],
    source: str,
) -> Certificate:
    """Merges a model in place and writes the merged file, with its certificate beside it.

    The whole model's error is measured on the file, loaded back into a newly built backbone, so that whatever the file
    would lose shows. The file gets its name only after that.

    Args:
        model: A model with adapters; afterwards it is the plain, merged one.
        header: Header of the adapter file.
        out: The merged file. The certificate is written to ``certificate.json`` in its folder.
        architecture: Builds the plain backbone, and runs it.
        batches: Inputs of ``architecture.run``, each ``(batch, ...)``, on the model's device.
        source: Where the inputs came from.

    Raises:
        NotMergeable: The merge or the file is not exact; nothing is published.
    """
    base = tensor_digests(model, leave_out=[str(name) for name in cast(list[object], header.get("extra", []))])
    before = [outputs(model, batch, architecture.run) for batch in batches]
    float64 = _float64_error(model, architecture, batches[0][:FLOAT64_INPUTS], source)
    certificate = merge(model)
    unverified = out.with_name(f".{out.stem}.unverified{out.suffix}")
    try:
        digest = save_merged(model, unverified, header, certificate.created)
        error = _error_of_file(unverified, architecture, batches, before, source)
        unverified.replace(out)
    finally:
        unverified.unlink(missing_ok=True)
    digests = {"base": fingerprint(base), "adapter": str(header.get("digest", "")), "merged": digest}
    certificate = replace(certificate, model=replace(error, float64=float64), digests=digests)
    write_json(out.with_name("certificate.json"), certificate.to_dict() | {"base": base})
    return certificate


def _float64_error(model: nn.Module, architecture: Architecture, batch: Tensor, source: str) -> float:
    """Error of the whole model's merge with everything in float64, on a copy."""
    double = copy.deepcopy(model).to(torch.float64)
    batch = batch.to(torch.float64)
    before = outputs(double, batch, architecture.run)
    merge(double)
    return compare(before, outputs(double, batch, architecture.run), source, torch.float64).deployed


def _error_of_file(
    path: Path, architecture: Architecture, batches: Sequence[Tensor], before: Sequence[Tensor], source: str
) -> ModelError:
    fresh = architecture.build().to(batches[0].dtype)
    load_merged(fresh, path)
    fresh.to(batches[0].device)
    after = [outputs(fresh, batch, architecture.run) for batch in batches]
    return compare(torch.cat(list(before)), torch.cat(after), source, batches[0].dtype)


def write_json(path: Path, value: object) -> None:
    """Writes JSON, whole or not at all, for people and programs alike."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    tensorfile.replace(path, lambda temporary: _write_text(temporary, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
