"""Methods that do not fold, so that a comparison can be complete: Adapter, AdaptFormer, Convpass and VPT."""

from petl_classics.bottleneck import AdaptFormer, AdaptFormerBranch, Bottleneck, HoulsbyAdapter, HoulsbyLayer
from petl_classics.convpass import Convpass, ConvpassBranch
from petl_classics.vpt import VPT, Prompts

__all__ = [
    "VPT",
    "AdaptFormer",
    "AdaptFormerBranch",
    "Bottleneck",
    "Convpass",
    "ConvpassBranch",
    "HoulsbyAdapter",
    "HoulsbyLayer",
    "Prompts",
]
