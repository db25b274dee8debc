"""Heads that image libraries lack, over the features of their backbones."""

from lightning_petl.heads.segmentation import DecodeHead
from lightning_petl.heads.video import MeanHead, TemporalAttentionHead, TemporalConvHead, video_head

__all__ = ["DecodeHead", "MeanHead", "TemporalAttentionHead", "TemporalConvHead", "video_head"]
