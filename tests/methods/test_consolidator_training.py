"""Consolidator in training: drop-path, gradients, what is kept in memory, autocast and compilation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from consolidator_layers import CPU, affine, layer, tokens
from kept import floor, kept_bytes
from torch import Tensor
from torch.autograd import gradgradcheck
from torch.func import functional_call, jvp, vmap
from torch.multiprocessing.reductions import StorageWeakRef

from lightning_petl import Affine, Consolidator, adapted_layers, inject, trainable
from lightning_petl.grouped import draw_parts
from lightning_petl.methods.consolidator import INIT, ConsolidatorLayer
from lightning_petl.testing import BACKBONES, add_noise
from lightning_petl.testing.backbones import vit


def test_initialisation_is_uniform_and_small() -> None:
    torch.manual_seed(0)
    model = inject(timm.create_model("vit_tiny_patch16_224", depth=1), Consolidator())
    values = torch.cat([parameter.detach().flatten() for parameter in trainable(model).values()])
    assert len(values) == 12 * 192 + 9 * 192 + 9 * 192 - 12 * 192 + 15 * 192  # weights 24 d, biases 9 d
    assert values.abs().max() <= INIT
    assert values.abs().max() > 0.99 * INIT
    assert abs(float(values.std()) - INIT / 3**0.5) < 0.02 * INIT


def reference_output(adapter: ConsolidatorLayer, x: Tensor, base: Affine, factors: Tensor) -> Tensor:
    """The definition, branch by branch: factors ``(batch, branches)`` stand for drop-path."""
    out = base(x)
    for k, branch in enumerate(adapter.branches):
        one = layer(base.in_features, base.out_features, (adapter.pattern.groups[k],), adapter.pattern.shuffle)
        with torch.no_grad():
            one.branches[0].bias.zero_()
        one.branches[0].weight = branch.weight
        dense = one.merged(Affine(torch.zeros_like(base.weight))).weight
        out = out + factors[:, k].view(-1, 1, 1) * (x @ dense.T + branch.bias)
    return out


@pytest.mark.parametrize("shuffle", [False, True], ids=["plain", "shuffled"])
@pytest.mark.parametrize("groups", [(8,), (4, 8), (8, 4, 2)], ids=str)
def test_drop_path_is_the_sum_of_what_is_kept(groups: tuple[int, ...], shuffle: bool) -> None:
    adapter, base = layer(16, 48, groups, shuffle, drop_path=0.4).train(), affine(16, 48)
    x = tokens(16, 7, 5).requires_grad_()
    torch.manual_seed(11)
    found = adapter(x, base)
    torch.manual_seed(11)
    factors = torch.zeros(7, len(groups), dtype=torch.float64)
    for part in draw_parts(7, len(groups), 0.4, CPU):
        factors[part.samples] = torch.tensor(part.factors, dtype=torch.float64)
    assert set(factors.flatten().tolist()) == {0.0, 1 / 0.6}
    expected = reference_output(adapter, x, base, factors)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    learned = [x, *(p for branch in adapter.branches for p in (branch.weight, branch.bias))]
    direction = torch.randn(found.shape, dtype=torch.float64)
    for of_fast, of_slow in zip(*(torch.autograd.grad(y, learned, direction) for y in (found, expected)), strict=True):
        torch.testing.assert_close(of_fast, of_slow, rtol=0, atol=1e-12)


def test_drop_path_is_by_sample_and_by_branch() -> None:
    """The share that is kept, its scale, and that one branch and one sample say nothing of another."""
    adapter, samples, drop = layer(16, 16, (4, 8), drop_path=0.3).train(), 4000, 0.3
    with torch.no_grad():
        for k, branch in enumerate(adapter.branches):  # each branch shows in an output of its own, by its bias alone
            branch.weight.zero_()
            branch.bias.copy_(torch.eye(16, dtype=torch.float64)[k])
    base = Affine(torch.eye(16, dtype=torch.float64))
    torch.manual_seed(0)
    x = tokens(16, samples, 2)
    added = adapter(x, base) - x
    torch.testing.assert_close(added[:, 0], added[:, 1], rtol=0, atol=1e-12)  # a sample as a whole
    assert added[..., 2:].abs().max() == 0  # the frozen layer's own output is never dropped
    kept = added[:, 0, :2]
    assert torch.equal(kept.round(decimals=6).unique(), torch.tensor([0, 1 / 0.7]).double().round(decimals=6))
    assert (kept.mean(0) - 1).abs().max() < 5 * (drop / (1 - drop) / samples) ** 0.5  # the mean is kept
    assert torch.corrcoef(kept.T)[0, 1].abs() < 5 / samples**0.5  # branches
    assert torch.corrcoef(torch.stack([kept[:-1, 0], kept[1:, 0]]))[0, 1].abs() < 5 / samples**0.5  # samples


def test_drop_path_acts_in_training_only() -> None:
    adapter, base, x = layer(16, 16, (4,), drop_path=0.8), affine(16, 16), tokens(16, 9, 3)
    expected = adapter.merged(base)(x)
    torch.testing.assert_close(adapter(x, base), expected, rtol=0, atol=1e-12)
    torch.manual_seed(0)
    assert (adapter.train()(x, base) - expected).abs().max() > 1e-3


def test_branches_dropped_for_all_samples_get_a_gradient_of_zero() -> None:
    adapter, base, x = layer(16, 16, (4,), drop_path=0.99).train(), affine(16, 16), tokens(16, 1, 3)
    torch.manual_seed(0)
    adapter(x, base).sum().backward()
    for parameter in adapter.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (2, 3, 4), (0, 3), (6, 0)], ids=str)
@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_inputs_of_any_rank(shape: tuple[int, ...], drop: float) -> None:
    adapter, base, x = layer(16, 32, (4,), drop_path=drop), affine(16, 32), tokens(16, *shape).requires_grad_()
    found = adapter(x, base)
    torch.testing.assert_close(found, adapter.merged(base)(x), rtol=0, atol=1e-12)
    assert adapter.train()(x, base).shape == (*shape, 32)
    found.sum().backward()
    assert x.grad.shape == x.shape


def test_a_base_that_trains_gets_its_gradient() -> None:
    adapter, x = layer(16, 32, (4,)), tokens(16, 2, 3)
    base = Affine(affine(16, 32).weight.requires_grad_(), affine(16, 32).bias.requires_grad_())
    found, expected = (
        torch.autograd.grad(out.square().sum(), (base.weight, base.bias))
        for out in (adapter(x, base), adapter.merged(base)(x))
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backbone", ["vit", "vit_layer_scale", "swin", "convnext"])
def test_gradients_inside_a_backbone(backbone: str) -> None:
    """Behind its own LayerNorms and GELUs, where inputs are made again rather than kept."""
    model = inject(BACKBONES[backbone].build(torch.float64), Consolidator((4, 8), True, train_norms_and_biases=True))
    parameters = trainable(model)
    add_noise(parameters.values())

    def gradients() -> tuple[Tensor, ...]:
        loss = model(BACKBONES[backbone].inputs(torch.float64)).square().mean()
        return torch.autograd.grad(loss, list(parameters.values()))

    found = gradients()
    for adapted in adapted_layers(model).values():
        adapted.adapter.forward = lambda x, base, adapter=adapted.adapter: adapter.merged(base)(x)
    for name, one, other in zip(parameters, found, gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, msg=name)


def test_training_keeps_no_more_than_the_frozen_backbone() -> None:
    x = torch.randn(32, 3, 32, 32)
    model = inject(vit(depth=4), Consolidator()).train()
    model.head.requires_grad_(True)
    assert kept_bytes(model, x) <= 1.02 * kept_bytes(floor(lambda: vit(depth=4)), x)


@pytest.mark.parametrize("drop", [0.0, 0.5])
@pytest.mark.parametrize("maker", [F.gelu, lambda x: F.layer_norm(x, (16,)), torch.tanh])
def test_a_gradient_of_a_gradient(maker: Callable[[Tensor], Tensor], drop: float) -> None:
    adapter, frozen = layer(16, 32, (4, 8), True, drop_path=drop).train(), affine(16, 32)
    names = [name for name, _ in adapter.named_parameters()]

    def function(x: Tensor, weight: Tensor, *parameters: Tensor) -> Tensor:
        torch.manual_seed(3)
        base = Affine(weight, frozen.bias)
        return functional_call(adapter, dict(zip(names, parameters, strict=True)), (maker(x), base))

    values = [tokens(16, 4, 2), frozen.weight, *(parameter.detach() for parameter in adapter.parameters())]
    assert gradgradcheck(function, [value.requires_grad_() for value in values], fast_mode=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_transforms_of_torch_func() -> None:
    adapter, base, x = layer(16, 32, (4, 8), True), affine(16, 32), tokens(16, 3, 5)
    parameters = {name: value.detach() for name, value in adapter.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(adapter, parameters, (x, base)).square().sum()

    each = vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for name, value in adapter.named_parameters():
        (expected,) = torch.autograd.grad(adapter(x, base).square().sum(), value)
        torch.testing.assert_close(torch.func.grad(loss)(parameters, x)[name], expected)
        torch.testing.assert_close(each[name].sum(0), expected)
    out, slope = jvp(lambda x: adapter(x, base), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(out, adapter(x, base))
    torch.testing.assert_close(slope, adapter.merged(base).linear(torch.ones_like(x)))


def test_backward_gives_everything_free() -> None:
    adapter, source = layer(16, 32, (4,)), tokens(16, 2, 3).requires_grad_() * 1
    out = adapter(F.layer_norm(source, (16,)), affine(16, 32)).sum()
    held = StorageWeakRef(source.untyped_storage())
    del source
    assert not held.expired()
    out.backward()
    assert held.expired()


def test_no_dense_gradient_is_formed() -> None:
    shapes: set[tuple[int, ...]] = set()

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and func is not torch.ops.aten.t.default:
                shapes.add(tuple(out.shape))
            return out

    adapter, base = layer(768, 768, None), affine(768, 768)
    out = adapter(tokens(768, 2, 3), base)
    with Watch():
        torch.autograd.grad(out.sum(), list(adapter.parameters()))
    assert (384 // 8, 16, 16) in shapes  # the products of several groups together
    assert (768, 768) not in shapes


def test_bfloat16_rounds_the_merged_weight_once() -> None:
    adapter, base = layer(16, 32, (4, 8), True, torch.float32), affine(16, 32, torch.bfloat16)
    x = tokens(16, 3, 5).to(torch.bfloat16)
    assert torch.equal(adapter(x, base), adapter.merged(base)(x))


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_autocast(drop: float) -> None:
    adapter, base = layer(16, 32, (4, 8), True, torch.float32, drop_path=drop).train(), affine(16, 32, torch.float32)
    x = tokens(16, 16, 5).float().requires_grad_()
    found = []
    for automatic in (True, False):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=automatic):
            out = adapter(x, base)
        assert out.dtype == (torch.bfloat16 if automatic else torch.float32)
        found.append(torch.autograd.grad(out.float().square().mean(), [x, *adapter.parameters()]))
    for half, full in zip(*found, strict=True):
        assert half.dtype == torch.float32
        assert (half - full).abs().max() <= 0.03 * full.abs().max()


@pytest.mark.slow
def test_compiled_and_exported_without_a_graph_break() -> None:
    model, x = inject(BACKBONES["vit"].build(), Consolidator()).train(), BACKBONES["vit"].inputs()
    assert torch._dynamo.explain(model)(x).graph_break_count == 0
    program = torch.export.export(model.eval(), (x,))
    torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_trace_takes_batches_of_any_size() -> None:
    model = inject(vit(), Consolidator((8, 4), channel_shuffle=True)).eval()
    add_noise(trainable(model).values())
    x = BACKBONES["vit"].inputs()
    traced = torch.jit.trace(model, (x,))
    for images in (x, torch.cat([x, x, x])):
        torch.testing.assert_close(traced(images), model(images))
