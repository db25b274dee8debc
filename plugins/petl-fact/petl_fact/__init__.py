"""FacT: Jie and Deng, Factor-Tuning for Lightweight Adaptation on Vision Transformer, arXiv 2212.03145."""

from petl_fact.method import FacT, FacTLayer, Factors, TensorTrainLayer, TuckerLayer

__all__ = ["FacT", "FacTLayer", "Factors", "TensorTrainLayer", "TuckerLayer"]
