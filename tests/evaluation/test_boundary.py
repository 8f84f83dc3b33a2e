"""Boundary IoU against erosion of every class's mask by itself, with scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

from locatvit.evaluation.boundary import boundary_distance, near_boundary
from locatvit.evaluation.metrics import SegmentationMetrics

IGNORE = 255


def blobs(seed: int, size: tuple[int, int], num_classes: int, ignored: float = 0.0) -> torch.Tensor:
    """A label map of regions that are larger than a pixel, [1, H, W], with some ignored blocks."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, num_classes, (size[0] // 5 + 1, size[1] // 7 + 1))
    labels = np.kron(coarse, np.ones((5, 7), dtype=np.int64))[: size[0], : size[1]]
    silent = np.kron(generator.random((size[0] // 3 + 1, size[1] // 4 + 1)) < ignored, np.ones((3, 4), dtype=bool))
    labels[silent[: size[0], : size[1]]] = IGNORE
    return torch.from_numpy(labels)[None]


def eroded_away(labels: np.ndarray, silent: np.ndarray, label: int, distance: int) -> np.ndarray:
    """What ``distance`` erosions by a square of 3 take from a class's mask; outside of the image nothing is left.

    Ignored pixels stand with the mask while it is eroded, so that they take nothing from it.
    """
    mask = (labels == label) & ~silent
    left = binary_erosion(mask | silent, structure=np.ones((3, 3)), iterations=distance, border_value=0)
    return mask & ~left


@pytest.mark.parametrize("distance", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("ignored", [0.0, 0.3])
@pytest.mark.parametrize("num_classes", [2, 5, 300])
def test_the_region_is_what_erosion_takes_away(distance, ignored, num_classes):
    labels = blobs(distance, (41, 53), num_classes, ignored)
    if num_classes == 300:
        labels[labels == IGNORE] = -1
    silent = (
        (labels == (-1 if num_classes == 300 else IGNORE)) if ignored else torch.zeros_like(labels, dtype=torch.bool)
    )
    near = near_boundary(labels, ~silent, distance, num_classes)[0].numpy()
    expected = np.zeros_like(near)
    for label in range(num_classes):
        expected |= eroded_away(labels[0].numpy(), silent[0].numpy(), label, distance)
    np.testing.assert_array_equal(near, expected)
    assert near.any()


def test_an_image_narrower_than_the_region_is_all_boundary():
    labels = torch.zeros(1, 40, 6, dtype=torch.long)
    assert near_boundary(labels, torch.ones_like(labels, dtype=torch.bool), 3, 2).all()


def test_a_plain_image_has_its_frame_for_a_boundary():
    labels = torch.zeros(1, 9, 11, dtype=torch.long)
    near = near_boundary(labels, torch.ones_like(labels, dtype=torch.bool), 2, 2)
    assert near.sum() == 9 * 11 - 5 * 7
    assert not near[0, 2:-2, 2:-2].any()


@pytest.mark.parametrize(
    ("size", "distance"), [((512, 683), 17), ((360, 480), 12), ((10, 10), 1), ((1024, 2048), 46), ((30, 40), 1)]
)
def test_the_distance_is_two_percent_of_the_diagonal(size, distance):
    assert boundary_distance(*size) == distance


@pytest.mark.parametrize("seed", range(4))
def test_scores_over_several_images_are_those_of_erosion(seed):
    num_classes, counts = 4, np.zeros((4, 2))
    metrics = SegmentationMetrics(("a", "b", "c", "d"), IGNORE, boundary_share=0.05)
    for number, size in enumerate(((60, 47), (33, 90), (51, 51))):
        truth = blobs(10 * seed + number, size, num_classes, ignored=0.15)
        predicted = blobs(10 * seed + number, size, num_classes).roll((2, -1), dims=(1, 2))
        metrics.update(predicted, truth)
        distance = max(1, round(0.05 * np.hypot(*size)))
        silent = truth[0].numpy() == IGNORE
        for label in range(num_classes):
            ours, theirs = (eroded_away(labels[0].numpy(), silent, label, distance) for labels in (truth, predicted))
            counts[label] += (ours & theirs).sum(), (ours | theirs).sum()
    scores, _ = metrics.compute()
    assert scores["boundary_iou"] == pytest.approx((counts[:, 0] / counts[:, 1]).mean(), rel=1e-9)
    assert 0.1 < scores["boundary_iou"] < 0.99


def test_a_shifted_edge_costs_more_in_boundary_iou_than_in_iou():
    truth = torch.zeros(1, 100, 100, dtype=torch.long)
    truth[:, :, 50:] = 1
    metrics = SegmentationMetrics(("left", "right"), IGNORE)
    metrics.update(truth.roll(2, dims=2).index_fill(2, torch.tensor([0, 1]), 0), truth)
    scores, _ = metrics.compute()
    assert scores["miou"] > 0.95
    assert scores["boundary_iou"] < scores["miou"] - 0.1


def test_a_class_amid_ignored_pixels_has_no_boundary_and_no_part_in_the_mean():
    truth = torch.zeros(1, 60, 60, dtype=torch.long)
    truth[:, 20:40, 20:40] = IGNORE
    truth[:, 29:31, 29:31] = 1
    metrics = SegmentationMetrics(("ground", "island"), IGNORE)
    metrics.update(truth.clamp(max=1), truth)
    scores, per_class = metrics.compute()
    assert per_class == {"ground": 1.0, "island": 1.0}
    assert scores["boundary_iou"] == 1.0
