"""The thin products are plain autograd's, number for number, and stand aside where they cannot be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd import forward_ad, grad, gradcheck, gradgradcheck
from torch.func import functional_call, jvp, vmap
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from lightning_petl import Affine
from lightning_petl.activations import itself, remade
from lightning_petl.products import dropped, narrowed, widened

WIDE, FEW = 24, 3
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}
MAKERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "layer_norm": lambda x, w, b: F.layer_norm(x, (WIDE,), w, b),
    "layer_norm_without_bias": lambda x, w, b: F.layer_norm(x, (WIDE,), w),
    "layer_norm_alone": lambda x, w, b: F.layer_norm(x, (WIDE,)),
    "layer_norm_over_all": lambda x, w, b: F.layer_norm(x, x.shape),
    "layer_norm_of_a_transpose": lambda x, w, b: F.layer_norm(x.transpose(0, -2), (WIDE,), w, b),
    "gelu": lambda x, w, b: F.gelu(x),
    "gelu_tanh": lambda x, w, b: F.gelu(x, approximate="tanh"),
    "kept": lambda x, w, b: x * w,
}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def leaves(dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (4, 5)) -> list[Tensor]:
    """Input, LayerNorm's weight and bias, the product's weight and bias."""
    x, weight, bias = normal(*shape, WIDE), normal(WIDE, seed=1), normal(WIDE, seed=2)
    by = normal(FEW, WIDE, seed=3), normal(FEW, seed=4)
    return [tensor.to(dtype).requires_grad_() for tensor in (x, weight, bias, *by)]


def both(maker: str, values: list[Tensor], drop: float = 0.0) -> list[Tensor]:
    """The product and plain autograd's, of what a maker makes, with the same random numbers."""
    x, weight, bias, *by = values
    outs = []
    for way in (narrowed, lambda made, affine, drop: affine(dropped(made, drop))):
        torch.manual_seed(0)
        outs.append(way(MAKERS[maker](x, weight, bias), Affine(*by), drop))
    return outs


def assert_close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        if other.numel():
            assert (one - other).abs().max() <= tolerance * (1 + other.abs().max())


@pytest.mark.parametrize("drop", [0.0, 0.5])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("maker", MAKERS)
def test_gradients_are_those_of_plain_autograd(maker: str, dtype: torch.dtype, drop: float) -> None:
    values = leaves(dtype)
    found, expected = both(maker, values, drop)
    assert torch.equal(found, expected)
    assert ("Narrowed" in type(found.grad_fn).__name__) == (maker != "kept")
    direction = normal(*found.shape, seed=5, dtype=dtype)
    grads = (grad(out, values, direction, materialize_grads=True) for out in (found, expected))
    assert_close(*grads, TOLERANCE[dtype])


@pytest.mark.parametrize("shape", [(), (6,), (2, 3, 4), (0, 3)], ids=str)
@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_inputs_of_any_rank(shape: tuple[int, ...], drop: float) -> None:
    values = leaves(shape=shape)
    outs = both("layer_norm", values, drop)
    assert torch.equal(*outs)
    assert_close(*(grad(out.square().sum(), values) for out in outs), 1e-12)


def test_a_mean_far_from_zero_costs_no_more_digits_than_the_layer_norm_itself() -> None:
    exact = leaves(shape=(64, 50))
    with torch.no_grad():
        exact[0].add_(100)
    rough = [value.detach().float().requires_grad_() for value in exact]
    exact = [value.detach().double().requires_grad_() for value in rough]  # the rounded numbers, exactly
    truth = grad(both("layer_norm", exact)[1].square().sum(), exact[3])[0]
    errors = [(grad(out.square().sum(), rough[3])[0] - truth).abs().max() for out in both("layer_norm", rough)]
    assert errors[0] <= 3 * errors[1]


@pytest.mark.parametrize("maker", ["layer_norm", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_autocast(maker: str, dtype: torch.dtype, drop: float) -> None:
    values = leaves()
    values = [value.detach().to(dtype if place < 3 else torch.float32) for place, value in enumerate(values)]
    values = [value.requires_grad_() for value in values]
    with torch.autocast("cpu", torch.bfloat16):
        outs = both(maker, values, drop)
    assert outs[0].dtype == torch.bfloat16
    assert torch.equal(*outs)
    grads = (grad(out.float().square().sum(), values, materialize_grads=True) for out in outs)
    assert_close(*grads, 2e-2)


@pytest.mark.parametrize("outside", [False, True])
def test_a_backward_pass_under_autocast(outside: bool) -> None:
    values = leaves(torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=not outside):
        outs = both("layer_norm", values)
    with torch.autocast("cpu", torch.bfloat16):
        grads = [grad(out.float().square().sum(), values) for out in outs]
    assert_close(*grads, 2e-2)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("weight", [False, True])
@pytest.mark.parametrize("input_", [False, True])
def test_only_what_learns_gets_a_gradient(weight: bool, bias: bool, input_: bool) -> None:
    values = [value.detach() for value in leaves()]
    for value, learns in zip(values, (input_, False, False, weight, bias), strict=True):
        value.requires_grad_(learns)
    learning = [value for value in values if value.requires_grad]
    outs = both("layer_norm", values)
    assert all(out.requires_grad == bool(learning) for out in outs)
    if learning:
        assert_close(*(grad(out.square().sum(), learning) for out in outs), 1e-12)


def test_without_a_gradient_of_the_input_or_without_a_bias() -> None:
    x, weight, bias, by, _ = leaves()
    for out in (narrowed(F.layer_norm(x, (WIDE,), weight, bias), Affine(by)), Affine(by)(x)):
        assert len(grad(out.sum(), by)) == 1
    with torch.no_grad():
        assert narrowed(F.gelu(x), Affine(by)).grad_fn is None
    with torch.inference_mode():
        assert narrowed(F.gelu(x), Affine(by)).is_inference()


@pytest.mark.parametrize("maker", ["layer_norm", "layer_norm_over_all", "gelu", "kept"])
def test_a_gradient_of_a_gradient(maker: str) -> None:
    def function(x: Tensor, weight: Tensor, bias: Tensor, *by: Tensor) -> Tensor:
        return narrowed(MAKERS[maker](x, weight, bias), Affine(*by))

    values = leaves(shape=(2, 3))
    assert gradcheck(function, values)
    assert gradgradcheck(function, values)


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_a_gradient_of_a_gradient_reaches_the_input_itself(drop: float) -> None:
    """And not only what made it: the input is nothing that autograd would have to look for."""
    found = []
    for way in (narrowed, lambda made, affine, drop: affine(dropped(made, drop))):
        x, weight, bias, *by = leaves()
        made = F.layer_norm(x, (WIDE,), weight, bias)
        torch.manual_seed(0)
        (first,) = grad(way(made, Affine(*by), drop).pow(3).sum(), by[0], create_graph=True)
        found.append(grad(first.square().sum(), [made, x, weight, *by]))
    assert_close(*found, 1e-12)


def test_the_output_may_be_changed_in_place() -> None:
    values = leaves()
    outs = [out.mul_(2) for out in both("layer_norm", values)]
    assert_close(*(grad(out.square().sum(), values) for out in outs), 1e-12)


@pytest.mark.parametrize(
    ("maker", "place"), [("layer_norm", 0), ("gelu", 0), ("layer_norm", 1), ("layer_norm", 3), ("gelu", 3), ("kept", 3)]
)
def test_what_is_changed_in_place_before_backward_is_found_out(maker: str, place: int) -> None:
    values = leaves()
    x = values[0] * 1
    out = narrowed(MAKERS[maker](x, *values[1:3]), Affine(*values[3:]))
    with torch.no_grad():
        (x if place == 0 else values[place]).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        grad(out.sum(), x if place == 3 else values[3])


@pytest.mark.parametrize("maker", ["layer_norm", "gelu", "kept"])
def test_a_change_of_the_input_itself_is_found_out_or_does_no_harm(maker: str) -> None:
    values = leaves()
    made = MAKERS[maker](*values[:3])
    out = narrowed(made, Affine(*values[3:]))
    expected = grad(both(maker, values)[1].sum(), values[3:])
    with torch.no_grad():
        made.add_(1)
    if maker == "kept":
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            grad(out.sum(), values[3:])
    else:  # it is made as it was
        assert_close(grad(out.sum(), values[3:]), expected, 1e-12)


@pytest.mark.parametrize("change", ["before", "source", "freed"])
def test_an_input_that_cannot_be_made_again_is_kept(change: str) -> None:
    x, weight, bias, *by = leaves()
    source = x * 1
    made = F.layer_norm(source, (WIDE,), weight, bias)
    if change == "freed":
        made.sum().backward()
    else:
        with torch.no_grad():
            (made if change == "before" else source).add_(1)
    assert remade(made)[0].remake is itself
    out = narrowed(made, Affine(*by))
    assert_close(grad(out.sum(), by[0]), (made.detach().sum((0, 1)).expand(FEW, WIDE),), 1e-12)


def test_backward_gives_everything_free() -> None:
    """A loss is often held until the next step is over; what its graph kept must not be."""
    x, weight, bias, *by = leaves()
    source = x * 1
    out = narrowed(F.layer_norm(source, (WIDE,), weight, bias), Affine(*by)).sum()
    held = StorageWeakRef(source.untyped_storage())
    del source
    assert not held.expired()
    out.backward()
    assert held.expired()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    values = leaves()
    x, weight, bias, *by = values

    def block(x: Tensor) -> Tensor:
        return narrowed(F.layer_norm(x, (WIDE,), weight, bias), Affine(*by), 0.5).square()

    torch.manual_seed(0)
    expected = grad(block(x).sum(), values)
    torch.manual_seed(0)
    checkpoint(block, x, use_reentrant=reentrant).sum().backward()
    assert_close(tuple(value.grad for value in values), expected, 1e-12)


def test_offloading() -> None:
    values = leaves()
    expected = grad(both("layer_norm", values)[1].sum(), values)
    with torch.autograd.graph.save_on_cpu():
        out = both("layer_norm", values)[0]
    assert_close(grad(out.sum(), values), expected, 1e-12)


class Site(nn.Module):
    """A LayerNorm and a product behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.down = nn.LayerNorm(WIDE, dtype=torch.float64), nn.Linear(WIDE, FEW, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return narrowed(self.norm(x), Affine(self.down.weight, self.down.bias))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_transforms_of_torch_func() -> None:
    site, x = Site(), normal(4, 5, WIDE)
    parameters = {name: value.detach() for name, value in site.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(site, parameters, (x,)).square().sum()

    each = vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for name, value in site.named_parameters():
        (expected,) = grad(site(x).square().sum(), value)
        torch.testing.assert_close(torch.func.grad(loss)(parameters, x)[name], expected)
        torch.testing.assert_close(each[name].sum(0), expected)
    out, slope = jvp(site, (x,), (torch.ones_like(x),))
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(site(forward_ad.make_dual(x, torch.ones_like(x))))
    torch.testing.assert_close(out, site(x))
    torch.testing.assert_close(dual.tangent, slope)


@pytest.mark.filterwarnings("ignore")
def test_tracers_and_compilers_see_plain_operations() -> None:
    site, x = Site(), normal(4, 5, WIDE).requires_grad_()
    expected = site(x)
    traced = torch.jit.trace(site, x, check_trace=False)
    assert "PythonOp" not in str(traced.graph)
    assert torch.equal(traced(x), expected)
    assert torch.equal(torch.export.export(site, (x,)).module()(x), expected)
    compiled = torch.compile(site, backend="eager", fullgraph=True)(x)
    assert_close(*(grad(out.square().sum(), [x, site.down.weight]) for out in (compiled, site(x))), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dropout_is_that_of_torch(dtype: torch.dtype) -> None:
    x = normal(50, WIDE, dtype=dtype).requires_grad_()
    outs = []
    for way in (lambda: dropped(x, 0.3), lambda: F.dropout(x, 0.3)):
        torch.manual_seed(0)
        outs.append(way())
    assert torch.equal(*outs)
    assert torch.equal(*(grad(out.sum(), x)[0] for out in outs))
    assert dropped(x, 0.0) is x


def test_widened_is_the_map_itself() -> None:
    values = [normal(4, 5, FEW).requires_grad_(), normal(WIDE, FEW).requires_grad_(), normal(WIDE).requires_grad_()]
    hidden, *by = values
    found, expected = widened(hidden, Affine(*by)), Affine(*by)(hidden)
    assert_close((found,), (expected,), 1e-14)
    assert_close(*(grad(out.square().sum(), values) for out in (found, expected)), 1e-12)
    assert gradgradcheck(lambda hidden, *by: widened(hidden, Affine(*by)), values)
