"""Scores against a confusion matrix counted independently with numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from locatvit.errors import LocAtError
from locatvit.evaluation.metrics import SegmentationMetrics

NAMES = ("sky", "road", "tree", "car", "sign")
IGNORE = 255


def expected_scores(pairs, num_classes, ignore_index):
    """Intersection over union of each class (nan where it never shows) and pixel accuracy, in float64."""
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    for predicted, truth in pairs:
        kept = truth.numpy() != ignore_index
        np.add.at(counts, (truth.numpy()[kept], predicted.numpy()[kept]), 1)
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    iou = np.where(union > 0, counts.diagonal() / np.maximum(union, 1), np.nan)
    return iou, counts.diagonal().sum() / counts.sum()


def random_pairs(seed: int, num_classes: int = 5):
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for shape in ((1, 7, 11), (2, 13, 5), (1, 3, 17)):
        truth = torch.randint(0, num_classes, shape, generator=generator)
        noise = torch.randint(0, num_classes, shape, generator=generator)
        predicted = torch.where(torch.rand(shape, generator=generator) < 0.6, truth, noise)
        truth[torch.rand(shape, generator=generator) < 0.2] = IGNORE
        pairs.append((predicted, truth))
    return pairs


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_all_pixels_together(seed):
    pairs = random_pairs(seed)
    metrics = SegmentationMetrics(NAMES, IGNORE)
    for predicted, truth in pairs:
        metrics.update(predicted, truth)
    scores, per_class = metrics.compute()
    iou, accuracy = expected_scores(pairs, 5, IGNORE)
    assert list(per_class) == list(NAMES)
    np.testing.assert_allclose(list(per_class.values()), iou, rtol=1e-6)
    assert scores["miou"] == pytest.approx(iou.mean(), rel=1e-6)
    assert scores["pixel_accuracy"] == pytest.approx(accuracy, rel=1e-12)
    assert all(type(value) is float for value in (*scores.values(), *per_class.values()))


def test_scores_by_hand():
    metrics = SegmentationMetrics(("a", "b", "c"), IGNORE)
    truth = torch.tensor([[[0, 0, 1, 1, IGNORE]]], dtype=torch.uint8)
    metrics.update(torch.tensor([[[0, 1, 1, 1, 2]]]), truth)
    scores, per_class = metrics.compute()
    # "c" was predicted under an ignored pixel alone, so it shows nowhere
    assert per_class == {"a": pytest.approx(1 / 2), "b": pytest.approx(2 / 3), "c": None}
    assert scores == {"miou": pytest.approx(7 / 12), "pixel_accuracy": pytest.approx(3 / 4)}


def test_a_class_that_is_only_predicted_scores_zero_and_counts():
    metrics = SegmentationMetrics(("a", "b", "c"), IGNORE)
    metrics.update(torch.tensor([[[0, 0, 1]]]), torch.tensor([[[0, 0, 0]]]))
    scores, per_class = metrics.compute()
    assert per_class == {"a": pytest.approx(2 / 3), "b": 0.0, "c": None}
    assert scores["miou"] == pytest.approx(1 / 3)


def test_an_ignored_class_has_no_score():
    metrics = SegmentationMetrics(("void", "a", "b"), 0)
    metrics.update(torch.tensor([[[0, 1, 2, 1]]]), torch.tensor([[[1, 1, 2, 0]]]))
    scores, per_class = metrics.compute()
    assert per_class == {"void": None, "a": pytest.approx(1 / 2), "b": 1.0}
    assert scores == {"miou": pytest.approx(3 / 4), "pixel_accuracy": pytest.approx(2 / 3)}


def test_every_pixel_counts_without_an_ignored_label():
    metrics = SegmentationMetrics(("a", "b"), None)
    metrics.update(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 0]]]))
    assert metrics.compute()[0] == {"miou": pytest.approx(1 / 4), "pixel_accuracy": pytest.approx(1 / 2)}


def test_counts_beyond_float32_stay_exact():
    metrics = SegmentationMetrics(("a", "b"), IGNORE)
    truth = torch.zeros(1, 4096, 4097, dtype=torch.uint8)
    predicted = torch.zeros(1, 4096, 4097, dtype=torch.long)
    predicted[0, 0, 0] = 1
    metrics.update(predicted, truth)
    assert metrics.compute()[0]["pixel_accuracy"] == 1 - 1 / (4096 * 4097)


@pytest.mark.parametrize("fill", [None, IGNORE], ids=["empty", "all ignored"])
def test_a_set_without_a_labelled_pixel_has_no_score(fill):
    metrics = SegmentationMetrics(NAMES, IGNORE)
    if fill is not None:
        metrics.update(torch.zeros(1, 2, 3, dtype=torch.long), torch.full((1, 2, 3), fill))
    with pytest.raises(LocAtError, match=r"no labelled pixel: .* ignore_index 255; check the annotations' folder"):
        metrics.compute()


@pytest.mark.parametrize("value", [5, 254, -1])
def test_a_label_that_is_no_class_is_named(value):
    truth = torch.tensor([[[0, IGNORE, value, 1]]])
    with pytest.raises(LocAtError, match=f"a mask has the value {value}; it must be a class, 0 to 4, or ignore_index"):
        SegmentationMetrics(NAMES, IGNORE).update(torch.zeros_like(truth), truth)


def test_sizes_that_differ_are_refused():
    with pytest.raises(LocAtError, match=r"predicted has shape \(1, 2, 3\) but truth \(1, 3, 2\); resize"):
        SegmentationMetrics(NAMES, IGNORE).update(torch.zeros(1, 2, 3).long(), torch.zeros(1, 3, 2).long())


@pytest.mark.parametrize("names", [(), ("a",), ("a", "b", "a")])
def test_class_names_must_tell_two_classes_apart(names):
    with pytest.raises(LocAtError, match=r"class_names are .*; there must be two or more, each with its own name"):
        SegmentationMetrics(names, IGNORE)
