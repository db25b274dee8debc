"""The built-in methods keep the contract that third parties are held to."""

from __future__ import annotations

from lightning_petl import ARC, FullFineTuning, LinearProbe, RepAdapter
from lightning_petl.testing import MethodContract


class TestRepAdapter(MethodContract):
    method = RepAdapter()


class TestRepAdapterDense(MethodContract):
    method = RepAdapter(hidden_dim=4, groups=1, scale=5.0, dropout=0.0, sites=("attn",))


class TestARC(MethodContract):
    method = ARC()
    identity_at_init = False  # the MLP site's rescaling starts at random


class TestARCAttention(MethodContract):
    method = ARC(rank=6, dropout=0.0, sites=("attn",))


class TestLinearProbe(MethodContract):
    method = LinearProbe()


class TestFullFineTuning(MethodContract):
    method = FullFineTuning()
