"""What is made again is what was, and anything doubtful is kept as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_petl.activations import origin, product_dtype

MAKERS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "layer_norm": lambda x: F.layer_norm(x, (8,), torch.arange(8).to(x) + 1, torch.arange(8).to(x)),
    "layer_norm_without_bias": lambda x: F.layer_norm(x, (8,), torch.arange(8).to(x) + 1),
    "layer_norm_alone": lambda x: F.layer_norm(x, (8,)),
    "layer_norm_over_two_axes": lambda x: F.layer_norm(x, (5, 8)),
}
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def source(dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x.to(dtype).requires_grad_()


def is_kept(x: Tensor) -> bool:
    """Whether the tensor itself is kept."""
    remake, kept = origin(x)
    same = len(kept) == 1 and kept[0].data_ptr() == x.data_ptr()
    assert not same or torch.equal(remake(*kept), x)
    return same


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("maker", MAKERS)
def test_made_again(maker: str, dtype: torch.dtype) -> None:
    before = source(dtype)
    x = MAKERS[maker](before)
    remake, kept = origin(x)
    assert kept[0].data_ptr() == before.data_ptr()  # what autograd keeps, and no copy
    assert not any(tensor is not None and tensor.requires_grad for tensor in kept)
    with torch.no_grad():
        found, copies = remake(*kept), [None if tensor is None else tensor.clone() for tensor in kept]
    error = (found.double() - x.double()).abs().max() / x.double().abs().max()
    assert error <= TOLERANCE[dtype]
    remake(*kept)
    for tensor, copy in zip(kept, copies, strict=True):
        assert tensor is None or torch.equal(tensor, copy)


@pytest.mark.parametrize(
    "maker",
    [
        lambda x: x,
        torch.relu,
        lambda x: F.gelu(x) * 2,
        lambda x: F.gelu(x)[:2],
        lambda x: F.gelu(x.detach()),
        lambda x: F.dropout(F.gelu(x), 0.5),
    ],
)
def test_anything_else_is_kept(maker: Callable[[Tensor], Tensor]) -> None:
    assert is_kept(maker(source()))


def test_a_tensor_that_was_written_to_is_kept() -> None:
    x = F.gelu(source())
    with torch.no_grad():
        x.add_(1)
    assert is_kept(x)


def test_inference_mode() -> None:
    with torch.inference_mode():
        assert is_kept(F.gelu(source()))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_sees_the_same_in_both_passes(reentrant: bool) -> None:
    seen: list[bool] = []

    def block(x: Tensor) -> Tensor:
        hidden = F.gelu(x)
        seen.append(is_kept(hidden))
        return hidden * hidden

    x = source()
    checkpoint(block, x, use_reentrant=reentrant).sum().backward()
    # The first pass of the reentrant kind records nothing, so there only the second has an origin.
    assert seen == ([True, False] if reentrant else [True, True])


def test_offloading_keeps_the_tensor() -> None:
    with torch.autograd.graph.save_on_cpu():
        assert is_kept(F.gelu(source()))


def test_hooks_that_only_watch_change_nothing() -> None:
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        assert not is_kept(F.gelu(source()))


def test_a_compiler_decides_itself() -> None:
    @torch.compile(backend="eager", fullgraph=True)
    def kept(x: Tensor) -> Tensor:
        return origin(F.gelu(x))[1][0]

    x = source()
    assert torch.equal(kept(x), F.gelu(x))


def test_product_dtype() -> None:
    layer = nn.Linear(8, 8)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            for dtype in (torch.float32, torch.bfloat16) if enabled else (torch.float32,):
                x = torch.zeros(2, 8, dtype=dtype)
                assert product_dtype(x) == layer(x).dtype
            double = torch.zeros(2, 8, dtype=torch.float64)
            assert product_dtype(double) == F.linear(double, layer.weight.double()).dtype
    assert product_dtype(torch.zeros(2, device="meta")) == torch.float32
