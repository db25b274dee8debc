"""The contract suite passes honest methods and catches each kind of liar, in the test that is meant to."""

from __future__ import annotations

import inspect
from pathlib import Path

import liars
import pytest
import torch

from lightning_petl import Method, PETLError
from lightning_petl.testing import BACKBONES, MethodContract

FORWARD, PURE = "test_forward_is_the_merged_map", "test_merged_is_pure"
ARGUMENTS, TRAINS = "test_arguments_are_json_and_build_the_method_again", "test_only_what_is_declared_trains"
CONSOLIDATED, FOLLOW = "test_consolidated_is_equal_and_no_larger", "test_parameters_follow_their_layer"
LOW_RANK = "test_low_rank_is_what_merging_adds"

LIARS = [
    (liars.ForgetsBias(), FORWARD, "forward and merged differ"),
    (liars.WrongGradient(), FORWARD, r"gradients of .*scale in forward and merged differ"),
    (liars.RandomInEvaluation(), FORWARD, "draws random numbers in evaluation"),
    (liars.OtherInTraining(), FORWARD, "differ by .* in training"),
    (liars.WritesToBase(), PURE, "merged changes its base"),
    (liars.WritesToItself(), PURE, "merged changes the adapter"),
    (liars.RandomMerge(), PURE, "merged draws random numbers"),
    (liars.NarrowMerge(), PURE, r"for a base in torch.float64, merged computes in torch.float32"),
    (liars.NotIdentity(), "test_initialisation", "fresh adapters change the outputs"),
    (liars.NoEffect(), "test_merge_is_exact", "adapters have no effect"),
    (liars.ChangesShape(), "test_merge_is_exact", r"merged weight is \(8, 32\)"),
    (liars.ForgetsBias(), "test_merge_is_exact", "forward and its merged map differ"),
    (liars.TrainsBase(), TRAINS, "which the method does not declare"),
    (liars.MovesBaseInTraining(), TRAINS, "training changes a frozen tensor"),
    (liars.IdleParameter(), TRAINS, r"idle'.* get no gradient"),
    (liars.LosesAnArgument(), ARGUMENTS, "computes something else"),
    (liars.ObjectArgument(), ARGUMENTS, "not a JSON value"),
    (liars.KeywordBag(a=1.0), ARGUMENTS, "give a method with"),
    (liars.SharesBetweenModels(), "test_copies_are_equal_and_independent", "shares parameters with the first"),
    (liars.LargerForStorage(), CONSOLIDATED, "the consolidated form is larger"),
    (liars.ForgetsScale(), CONSOLIDATED, "the merged map of the consolidated form differs"),
    (liars.WrongLowRank(), LOW_RANK, r"low_rank and merged differ by .* in the weight"),
    (liars.LowRankForgetsBias(), LOW_RANK, r"low_rank and merged differ by .* in the bias"),
    (liars.HiddenState(), "test_file_round_trip", "loaded from its file, the model differs"),
    (liars.Float32Only(), FOLLOW, "should be torch.float64"),
    (liars.WidensOutputs(), FOLLOW, "the output for torch.bfloat16 inputs is torch.float32"),
    (liars.CPUOnly(), "test_meta_device", "are not on their layer's device"),
    (liars.FindsNothing(), "test_adapts_something", "adapts no layer of any backbone"),
]


def judge(contract: type[MethodContract], name: str, folder: Path) -> None:
    """Runs one test of the suite for each dtype, as pytest would."""
    test = getattr(contract(), name)
    choices = {"backbone": BACKBONES["toy"], "tmp_path": folder}
    wanted = inspect.signature(test).parameters
    arguments = {key: value for key, value in choices.items() if key in wanted}
    for dtype in (torch.float64, torch.float32, torch.bfloat16) if "dtype" in wanted else (None,):
        test(**arguments | ({} if dtype is None else {"dtype": dtype}))


@pytest.mark.parametrize(
    ("method", "test", "reason"), LIARS, ids=[f"{type(method).__name__}-{test[5:20]}" for method, test, _ in LIARS]
)
def test_liar_is_caught(method: Method, test: str, reason: str, tmp_path: Path) -> None:
    contract = type("TestLiar", (MethodContract,), {"method": method})
    with pytest.raises((AssertionError, PETLError), match=reason):
        judge(contract, test, tmp_path)


def test_declared_start_is_checked_too(tmp_path: Path) -> None:
    contract = type("TestLiar", (MethodContract,), {"method": liars.Honest(), "identity_at_init": False})
    with pytest.raises(AssertionError, match="leave identity_at_init at True"):
        judge(contract, "test_initialisation", tmp_path)


class TestHonest(MethodContract):
    method = liars.Honest()


class TestTrainsInPlace(MethodContract):
    method = liars.TrainsInPlace()
    backbones = {name: BACKBONES[name] for name in ("toy", "vit")}


class TestNotIdentity(MethodContract):
    method = liars.NotIdentity()
    identity_at_init = False
    backbones = {"vit": BACKBONES["vit"]}


class TestShared(MethodContract):
    method = liars.Shared()
    backbones = {name: BACKBONES[name] for name in ("toy", "vit")}
