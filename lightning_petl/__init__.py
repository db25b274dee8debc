"""lightning-petl: adapt a frozen vision backbone, fold the adapter into it, serve it at the backbone's own cost.

Names are imported when they are first used (PEP 562), so that commands which need no tensor start without torch.
"""

from typing import TYPE_CHECKING

from lightning_petl.lazy import attributes

if TYPE_CHECKING:
    from lightning_petl.adapter import Adapter, LowRank, Method, ModuleAdapter, Target
    from lightning_petl.affine import Affine
    from lightning_petl.errors import (
        AdapterFileError,
        BackboneMismatch,
        ConfigError,
        DataError,
        NotMergeable,
        PETLError,
        PluginError,
        TargetNotFound,
    )
    from lightning_petl.exchange import export_peft, import_peft
    from lightning_petl.injection import inject, trainable
    from lightning_petl.merging import Certificate, merge
    from lightning_petl.methods.arc import ARC
    from lightning_petl.methods.baselines import FullFineTuning, LinearProbe
    from lightning_petl.methods.bitfit import BitFit
    from lightning_petl.methods.consolidator import Consolidator
    from lightning_petl.methods.lora import LoRA
    from lightning_petl.methods.repadapter import RepAdapter
    from lightning_petl.methods.ssf import SSF
    from lightning_petl.plugins import MethodInfo, list_methods
    from lightning_petl.store import load_adapter, save_adapter
    from lightning_petl.wrappers import Adapted, adapted_layers

_ROOMS = {
    "adapter": ("Adapter", "LowRank", "Method", "ModuleAdapter", "Target"),
    "affine": ("Affine",),
    "errors": (
        "AdapterFileError",
        "BackboneMismatch",
        "ConfigError",
        "DataError",
        "NotMergeable",
        "PETLError",
        "PluginError",
        "TargetNotFound",
    ),
    "exchange": ("export_peft", "import_peft"),
    "injection": ("inject", "trainable"),
    "merging": ("Certificate", "merge"),
    "methods.arc": ("ARC",),
    "methods.baselines": ("FullFineTuning", "LinearProbe"),
    "methods.bitfit": ("BitFit",),
    "methods.consolidator": ("Consolidator",),
    "methods.lora": ("LoRA",),
    "methods.repadapter": ("RepAdapter",),
    "methods.ssf": ("SSF",),
    "plugins": ("MethodInfo", "list_methods"),
    "store": ("load_adapter", "save_adapter"),
    "wrappers": ("Adapted", "adapted_layers"),
}

__all__ = [
    "ARC",
    "SSF",
    "Adapted",
    "Adapter",
    "AdapterFileError",
    "Affine",
    "BackboneMismatch",
    "BitFit",
    "Certificate",
    "ConfigError",
    "Consolidator",
    "DataError",
    "FullFineTuning",
    "LinearProbe",
    "LoRA",
    "LowRank",
    "Method",
    "MethodInfo",
    "ModuleAdapter",
    "NotMergeable",
    "PETLError",
    "PluginError",
    "RepAdapter",
    "Target",
    "TargetNotFound",
    "adapted_layers",
    "export_peft",
    "import_peft",
    "inject",
    "list_methods",
    "load_adapter",
    "merge",
    "save_adapter",
    "trainable",
]


__getattr__, __dir__ = attributes(globals(), _ROOMS)
