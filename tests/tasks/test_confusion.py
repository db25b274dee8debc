"""Scores of a whole data set equal those of a count made pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_petl.tasks.confusion import ClassScores, Confusion
from lightning_petl.tasks.pixel_losses import IGNORED

CLASSES = 7


def samples(seed: int, absent: tuple[int, ...], only_predicted: tuple[int, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random predictions and masks of several sizes, some pixels without a class."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(5):
        size = tuple(random.integers(3, 20, 2))
        known = [label for label in range(CLASSES) if label not in absent]
        predicted = random.choice(known, size)
        mask = random.choice([label for label in known if label not in only_predicted], size)
        agree = random.random(size) < 0.5
        predicted = np.where(agree, mask, predicted)
        found.append((predicted, np.where(random.random(size) < 0.2, IGNORED, mask)))
    return found


def counted_by_hand(pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    counts = np.zeros((CLASSES, CLASSES), np.int64)
    for predicted, mask in pairs:
        for row, column in np.ndindex(mask.shape):
            if mask[row, column] != IGNORED:
                counts[mask[row, column], predicted[row, column]] += 1
    return counts


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("absent", "only_predicted"), [((), ()), ((2,), ()), ((0, 6), (3,))])
def test_scores_are_those_of_an_independent_matrix(
    seed: int, absent: tuple[int, ...], only_predicted: tuple[int, ...]
) -> None:
    pairs = samples(seed, absent, only_predicted)
    metric = Confusion(CLASSES)
    for predicted, mask in pairs:
        metric.update(torch.from_numpy(predicted), torch.from_numpy(mask))
    counts, images = metric.compute()
    matrix = counted_by_hand(pairs)
    np.testing.assert_array_equal(counts.numpy(), matrix)
    assert int(images) == 5
    scores = ClassScores.of(counts)
    ious, accuracies = {}, {}
    for label in range(CLASSES):
        hits, true, predicted = matrix[label, label], matrix[label].sum(), matrix[:, label].sum()
        if true + predicted:
            ious[label] = hits / (true + predicted - hits)
        if true:
            accuracies[label] = hits / true
    assert set(ious) == set(range(CLASSES)) - set(absent)
    for label in range(CLASSES):
        found = float(scores.iou[label])
        assert math.isnan(found) if label not in ious else found == pytest.approx(ious[label], abs=1e-15)
    assert all(float(scores.iou[label]) == 0 for label in only_predicted)
    assert scores.miou == pytest.approx(np.mean(list(ious.values())), abs=1e-15)
    assert scores.mean_accuracy == pytest.approx(np.mean(list(accuracies.values())), abs=1e-15)
    assert scores.pixel_accuracy == pytest.approx(np.trace(matrix) / matrix.sum(), abs=1e-15)


def test_the_mean_is_over_the_data_set_not_over_images() -> None:
    metric = Confusion(2)
    metric.update(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64))  # all right
    metric.update(torch.zeros(1, 99, dtype=torch.int64), torch.ones(1, 99, dtype=torch.int64))  # all wrong
    scores = ClassScores.of(metric.compute()[0])
    assert scores.iou.tolist() == [0.01, 0.0]


@pytest.mark.parametrize("classes", [1, 3])
def test_without_any_pixel_scores_are_zero(classes: int) -> None:
    metric = Confusion(classes)
    metric.update(torch.zeros(2, 2, dtype=torch.int64), torch.full((2, 2), IGNORED))
    scores = ClassScores.of(metric.compute()[0])
    assert (scores.miou, scores.mean_accuracy, scores.pixel_accuracy) == (0, 0, 0)
    assert scores.iou.isnan().all()
    assert len(scores.iou) == classes
