"""BitFit: Ben Zaken et al., Simple Parameter-efficient Fine-tuning for Transformers, arXiv 2106.10199."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from lightning_petl.adapter import WithoutAdapters
from lightning_petl.errors import ConfigError


class BitFit(WithoutAdapters):
    """BitFit (arXiv 2106.10199): trains every bias of the backbone in place, and nothing else of it.

    Biases are the one-dimensional parameters whose name ends in ``bias``: those of linear layers, convolutions and
    norms, and those that an attention keeps by itself, such as ``q_bias``. Nothing is added, so nothing has to fold.
    """

    def trained(self, model: nn.Module) -> Iterable[str]:
        """Every bias, the head's too.

        Raises:
            ConfigError: The backbone has none.
        """
        names = [name for name, parameter in model.named_parameters() if name.endswith("bias") and parameter.dim() == 1]
        if not names:
            raise ConfigError("this backbone has no biases to train", where="method", fix="choose another method")
        return names
