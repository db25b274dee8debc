"""From sites and patterns to layers: what is found, and what is refused with which words."""

from __future__ import annotations

import logging

import pytest
import timm
import torch
from torch import nn

from lightning_petl import ConfigError, NotMergeable, RepAdapter, TargetNotFound
from lightning_petl.targets import find_targets
from lightning_petl.testing.backbones import Toy, convnext, swin, vit


class Alone(RepAdapter):
    """Leaves the contract's default: layers that read one input together are refused."""

    separate = "refuse"


def paths(model: nn.Module, method: type[RepAdapter] = RepAdapter, **arguments: object) -> list[str]:
    return [target.path for target in find_targets(model, method(**arguments))]


def test_sites_of_a_vit() -> None:
    assert paths(vit()) == ["blocks.0.attn.qkv", "blocks.0.mlp.fc1", "blocks.1.attn.qkv", "blocks.1.mlp.fc1"]
    assert paths(vit(), sites=("mlp",)) == ["blocks.0.mlp.fc1", "blocks.1.mlp.fc1"]


def test_sites_of_a_swin_leave_the_merging_layers_alone() -> None:
    found = paths(swin())
    assert len(found) == 8
    assert all(path.endswith((".attn.qkv", ".mlp.fc1")) for path in found)


def test_a_site_that_a_backbone_lacks_is_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = paths(convnext())
    assert found == [f"stages.{stage}.blocks.0.mlp.fc1" for stage in range(4)]
    assert [record.getMessage() for record in caplog.records] == [
        "this backbone has no site 'attn'; nothing is adapted there"
    ]


def test_no_site_at_all_is_an_error() -> None:
    with pytest.raises(TargetNotFound, match=r"none of the sites attn, mlp \[sites\] - name layers with targets="):
        paths(timm.create_model("resnet18"))


def test_a_token_mixing_mlp_is_no_site() -> None:
    found = paths(timm.create_model("mixer_s32_224", img_size=64), sites=("mlp",))
    assert found
    assert all(".mlp_channels." in path for path in found)


def test_the_mlp_of_a_head_is_no_site() -> None:
    class WithHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = Toy(), nn.ModuleDict({"mlp": nn.ModuleDict({"fc1": nn.Linear(4, 4)})})

    assert all(path.startswith("body.") for path in paths(WithHead()))


def test_target_describes_its_layer() -> None:
    first, *_, last = find_targets(Toy(), RepAdapter())
    assert (first.path, first.site, first.in_features, first.out_features) == ("blocks.0.attn.qkv", "attn", 16, 48)
    assert (first.has_bias, last.has_bias) == (True, False)
    assert first.device == torch.device("cpu")
    custom = find_targets(Toy().double(), RepAdapter(targets=("head",)))
    assert [(target.site, target.dtype) for target in custom] == [("custom", torch.float64)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_adapters_of_narrow_layers_are_float32(dtype: torch.dtype) -> None:
    assert find_targets(Toy().to(dtype), RepAdapter())[0].dtype == torch.float32


def test_patterns_match_in_full_and_come_in_the_order_of_the_model() -> None:
    wanted = ("head", r"blocks\.1\..*fc\d")
    assert paths(Toy(), targets=wanted) == ["blocks.1.mlp.fc1", "blocks.1.mlp.fc2", "head"]
    with pytest.raises(TargetNotFound):
        paths(Toy(), targets=("hea",))


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        (r"blocks\.\d+\.attn\.qvk", "blocks.0.attn.qkv"),
        (r".*\.mlp\.fc3", "blocks.0.mlp.fc1"),
        (r"blocks\.0\.attn", "blocks.0.attn.qkv"),
        ("heads", "head"),
    ],
)
def test_a_pattern_without_a_match_lists_near_misses(pattern: str, near: str) -> None:
    if pattern == r"blocks\.0\.attn":  # it matches a module, though none that can be adapted
        with pytest.raises(NotMergeable, match=r"no affine map.*\[blocks\.0\.attn\]"):
            paths(Toy(), targets=(pattern,))
        return
    with pytest.raises(TargetNotFound) as caught:
        paths(Toy(), targets=(pattern,))
    assert near in caught.value.fix
    assert repr(pattern) in caught.value.what


def test_one_good_and_one_bad_pattern_is_an_error() -> None:
    with pytest.raises(TargetNotFound, match=r"no_such"):
        paths(Toy(), targets=(r".*\.qkv", r".*\.no_such"))


def test_a_pattern_that_is_no_regular_expression_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"'\(' is no regular expression.*\[targets\]"):
        paths(Toy(), targets=("(",))


def test_an_unknown_site_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"unknown site 'atn' \[sites\] - did you mean attn\?"):
        paths(Toy(), sites=("atn",))


class Separate(nn.Module):
    """An attention that reads one input through several layers."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(4, 4))


@pytest.mark.parametrize("names", [("q", "k", "v"), ("q", "kv"), ("q_proj", "k_proj", "v_proj")], ids="-".join)
def test_separate_projections_are_refused_rather_than_left_out(names: tuple[str, ...]) -> None:
    model = nn.ModuleDict({"body": Toy(), "attn": Separate(*names)})
    with pytest.raises(NotMergeable, match=r"site 'attn' is read by separate layers .*\[attn\]"):
        paths(model, Alone)
    assert "attn" in paths(model)
    assert paths(model, sites=("mlp",)) == ["body.blocks.0.mlp.fc1", "body.blocks.1.mlp.fc1"]


def test_a_gated_mlp_is_refused() -> None:
    with pytest.raises(NotMergeable, match=r"site 'mlp' is read by separate layers fc1_g, fc1_x"):
        paths(nn.ModuleDict({"body": Toy(), "mlp": Separate("fc1_g", "fc1_x")}), Alone)


def test_a_layer_in_two_places_is_refused() -> None:
    model = Toy()
    model.blocks[1].mlp.fc1 = model.blocks[0].mlp.fc1
    with pytest.raises(NotMergeable, match=r"used in several places: blocks\.0\.mlp\.fc1, blocks\.1\.mlp\.fc1"):
        paths(model)


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_tied_tensors_are_refused(kind: str) -> None:
    model = Toy()
    setattr(model.blocks[0].mlp.fc2, kind, getattr(model.blocks[0].mlp.fc1, kind))
    with pytest.raises(NotMergeable, match=rf"its weight is shared: .*fc1\.{kind}, .*fc2\.{kind}"):
        paths(model)


def test_a_block_in_two_places_is_refused() -> None:
    model = Toy()
    model.blocks[1] = model.blocks[0]
    with pytest.raises(NotMergeable, match="used in several places"):
        paths(model)
