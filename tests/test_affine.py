"""The algebra of affine maps, judged by applying the maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_petl import Affine


def affine(out: int, into: int, bias: bool = True, dtype: torch.dtype = torch.float64) -> Affine:
    return Affine(torch.randn(out, into, dtype=dtype), torch.randn(out, dtype=dtype) if bias else None)


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 5, 4, dtype=torch.float64)


biases = pytest.mark.parametrize("first_bias", [True, False], ids=["bias", "plain"])
other_biases = pytest.mark.parametrize("second_bias", [True, False], ids=["bias", "plain"])


@biases
@other_biases
def test_after_is_composition(x: Tensor, first_bias: bool, second_bias: bool) -> None:
    first, second = affine(6, 4, first_bias), affine(3, 6, second_bias)
    both = second.after(first)
    same(both(x), second(first(x)))
    assert (both.in_features, both.out_features) == (4, 3)
    assert (both.bias is None) == (not first_bias and not second_bias)


@biases
@other_biases
def test_sum_adds_outputs(x: Tensor, first_bias: bool, second_bias: bool) -> None:
    first, second = affine(3, 4, first_bias), affine(3, 4, second_bias)
    same((first + second)(x), first(x) + second(x))


@biases
@pytest.mark.parametrize("factor", [0.5, torch.tensor(3.0), torch.arange(3.0)], ids=["number", "scalar", "per output"])
def test_scaled_multiplies_outputs(x: Tensor, first_bias: bool, factor: float | Tensor) -> None:
    layer = affine(3, 4, first_bias)
    same(layer.scaled(factor)(x), layer(x) * factor)


@biases
def test_rows_are_a_range_of_outputs(x: Tensor, first_bias: bool) -> None:
    layer = affine(9, 4, first_bias)
    same(layer.rows(3, 6)(x), layer(x)[..., 3:6])


def test_linear_drops_the_bias(x: Tensor) -> None:
    layer = affine(3, 4)
    assert layer.bias is not None
    same(layer.linear(x), layer(x) - layer.bias)


def test_identity_keeps_its_input(x: Tensor) -> None:
    same(Affine.identity(4, x)(x), x)
    assert Affine.identity(4, x).weight.dtype == x.dtype


def test_mixed_dtypes_promote_to_the_wider() -> None:
    wide, narrow = affine(3, 4), affine(4, 4, dtype=torch.float32)
    for result in (wide.after(narrow), affine(4, 3, dtype=torch.float32).after(wide), wide + affine(3, 4)):
        assert result.weight.dtype == torch.float64
        assert result.bias is not None
        assert result.bias.dtype == torch.float64


def test_call_computes_in_the_dtype_of_the_input(x: Tensor) -> None:
    assert affine(3, 4)(x.bfloat16()).dtype == torch.bfloat16


def test_to_converts_both_tensors() -> None:
    narrow = affine(3, 4).to(torch.float16)
    assert narrow.bias is not None
    assert (narrow.weight.dtype, narrow.bias.dtype) == (torch.float16, torch.float16)


def test_operands_are_not_changed(x: Tensor) -> None:
    layer, other = affine(4, 4), affine(4, 4)
    before = [tensor.clone() for tensor in (layer.weight, layer.bias, other.weight, other.bias, x)]
    layer.after(other), layer + other, layer.scaled(2.0), layer.rows(0, 2), layer.linear, layer(x)
    after = (layer.weight, layer.bias, other.weight, other.bias, x)
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [((3,), None, r"\(out, in\), not \(3,\)"), ((3, 4, 1), None, r"not \(3, 4, 1\)"), ((3, 4), (4,), r"bias \(4,\)")],
    ids=["vector", "kernel", "bias of inputs"],
)
def test_shapes_that_are_no_affine_map_are_refused(weight: tuple, bias: tuple | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Affine(torch.zeros(weight), None if bias is None else torch.zeros(bias))
