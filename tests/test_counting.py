"""The counts of the papers, to the digit, in every convention; built without memory."""

from __future__ import annotations

import json

import pytest

from lightning_petl import cli

# Backbone without its head, then (weights, biases, shared) of each setting; None where it does not fit.
EXPECTED = {
    "vit_small_patch16_224": (
        21_665_664,
        {
            "RepAdapter": (110_592, 9_408, 0),
            "RepAdapter attn": (55_296, 4_704, 0),
            "ARC": (1_200, 9_216, 38_400),
            "ARC_att": (600, 4_608, 19_200),
            "Consolidator": (110_592, 41_472, 0),
        },
    ),
    "vit_base_patch16_224": (
        85_798_656,
        {
            "RepAdapter": (221_184, 18_624, 0),
            "RepAdapter attn": (110_592, 9_312, 0),
            "RepAdapter groups=1": (294_912, 18_624, 0),
            "ARC": (1_200, 18_432, 76_800),
            "ARC_att": (600, 9_216, 38_400),
            "Consolidator": (221_184, 82_944, 0),
            "Consolidator g=384": (221_184, 82_944, 0),
            "LinearProbe": (0, 0, 0),
        },
    ),
    "vit_huge_patch14_224": (
        630_764_800,
        {
            "RepAdapter": (983_040, 82_432, 0),
            "ARC": (3_200, 81_920, 128_000),
            "Consolidator": (983_040, 368_640, 0),
            "Consolidator g=384": None,
        },
    ),
    "swin_base_patch4_window7_224": (
        86_743_224,
        {
            "RepAdapter": (288_768, 24_448, 0),
            "RepAdapter groups=1": (385_024, 24_448, 0),
            "ARC": (2_400, 24_064, 192_000),
            "Consolidator": (288_768, 108_288, 0),
        },
    ),
    "convnext_base": (
        87_566_464,
        {
            "RepAdapter": (216_576, 18_336, 0),  # the MLP site alone: the other does not fold
            "RepAdapter attn": None,
            "ARC": (1_800, 18_048, 96_000),
            "Consolidator": (288_768, 90_240, 0),
        },
    ),
}


@pytest.mark.parametrize("backbone", [*EXPECTED])
def test_counts(backbone: str, capsys: pytest.CaptureFixture[str]) -> None:
    size, expected = EXPECTED[backbone]
    assert cli.run(["methods", "--count", backbone, "--classes", "10", "--json"]) == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    for name, columns in expected.items():
        row = found[name]
        assert row["backbone"] == size
        if columns is None:
            assert row["error"]
            continue
        assert (row["weights"], row["biases"], row["shared"]) == columns, name
        assert row["in_place"] == 0
        assert row["without_head"] == sum(columns)
        assert row["with_head"] == sum(columns) + row["head"]


# Parameters of the norms, which the recipe trains in place; the biases of adapted layers count as the adapters' own.
NORMS = {
    "vit_small_patch16_224": (110_592, 2 * 41_472, 19_200),
    "vit_base_patch16_224": (221_184, 2 * 82_944, 38_400),  # 425,472 in all
    "vit_large_patch16_224": (589_824, 2 * 221_184, 100_352),
}


@pytest.mark.parametrize("backbone", [*NORMS])
def test_the_consolidator_as_trained(backbone: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["methods", "--count", backbone, "--json"]) == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}["Consolidator as trained"]
    assert (found["weights"], found["biases"], found["in_place"]) == NORMS[backbone]


def test_full_fine_tuning_trains_in_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["methods", "--count", "vit_base_patch16_224", "--json"]) == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["FullFineTuning"]["in_place"] == 85_798_656
    assert found["FullFineTuning"]["head"] == 76_900


def test_the_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["methods", "--count", "vit_tiny_patch16_224"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-1] == "head"
    assert any(line.startswith("RepAdapter ") and line.split()[-1].replace(",", "").isdigit() for line in lines)


def test_an_unknown_backbone_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["methods", "--count", "vit_bse_patch16_224"]) == 1
    assert "unknown backbone 'vit_bse_patch16_224'" in capsys.readouterr().err.splitlines()[-1]
