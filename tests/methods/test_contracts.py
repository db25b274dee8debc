"""The built-in methods keep the contract that third parties are held to."""

from __future__ import annotations

from lightning_petl import ARC, Consolidator, FullFineTuning, LinearProbe, RepAdapter
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


class TestConsolidator(MethodContract):
    method = Consolidator()
    identity_at_init = False  # branches start uniform around zero


class TestConsolidatorBranches(MethodContract):
    method = Consolidator(groups=(4, 8), channel_shuffle=True, drop_path=0.5)
    identity_at_init = False


class TestConsolidatorWithoutBias(MethodContract):
    method = Consolidator(groups=(2, 2), bias=False)
    identity_at_init = False


class TestConsolidatorNorms(MethodContract):
    method = Consolidator(train_norms_and_biases=True)
    identity_at_init = False


class TestLinearProbe(MethodContract):
    method = LinearProbe()


class TestFullFineTuning(MethodContract):
    method = FullFineTuning()
