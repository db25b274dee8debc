"""The built-in methods keep the contract that third parties are held to."""

from __future__ import annotations

from lightning_petl import ARC, SSF, BitFit, Consolidator, FullFineTuning, LinearProbe, LoRA, RepAdapter
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


class TestLoRA(MethodContract):
    method = LoRA()


class TestLoRAParts(MethodContract):
    method = LoRA(rank=4, alpha=2.0, parts=("q", "v"), bias=True)


class TestLoRABothSites(MethodContract):
    method = LoRA(rank=2, alpha=16, dropout=0.1, sites=("attn", "mlp"), bias=True)


class TestSSF(MethodContract):
    method = SSF()
    identity_at_init = False  # scales start normal around 1, shifts around 0


class TestBitFit(MethodContract):
    method = BitFit()


class TestLinearProbe(MethodContract):
    method = LinearProbe()


class TestFullFineTuning(MethodContract):
    method = FullFineTuning()
