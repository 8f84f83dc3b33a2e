"""Scores against a confusion matrix counted independently with numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from locatvit.errors import LocAtError
from locatvit.evaluation.metrics import SegmentationMetrics, image_miou

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
    # one row of pixels: every pixel is at the image's edge, so the boundary region is all of it
    assert scores == {
        "miou": pytest.approx(7 / 12), "pixel_accuracy": pytest.approx(3 / 4), "boundary_iou": pytest.approx(7 / 12),
    }  # fmt: skip


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
    assert scores == {
        "miou": pytest.approx(3 / 4), "pixel_accuracy": pytest.approx(2 / 3), "boundary_iou": pytest.approx(3 / 4),
    }  # fmt: skip


def test_every_pixel_counts_without_an_ignored_label():
    metrics = SegmentationMetrics(("a", "b"), None, boundary_share=None)
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


def measured(pairs, names=NAMES, ignore_index=IGNORE):
    metrics = SegmentationMetrics(names, ignore_index)
    for predicted, truth in pairs:
        metrics.update(predicted, truth)
    return metrics.compute()


def test_a_perfect_prediction_scores_one_whatever_it_says_under_ignored_pixels():
    pairs = [(torch.where(truth == IGNORE, predicted, truth), truth) for predicted, truth in random_pairs(5)]
    scores, per_class = measured(pairs)
    assert scores == {"miou": 1.0, "pixel_accuracy": 1.0, "boundary_iou": 1.0}
    assert set(per_class.values()) == {1.0}


def test_dice_and_iou_of_the_same_counts_agree():
    """Dice = 2 IoU / (1 + IoU), with Dice counted by itself as 2 TP / (predicted + true)."""
    pairs = random_pairs(6)
    _, per_class = measured(pairs)
    kept = [(predicted[truth != IGNORE], truth[truth != IGNORE]) for predicted, truth in pairs]
    predicted, truth = (torch.cat(parts) for parts in zip(*kept, strict=True))
    for label, name in enumerate(NAMES):
        both = ((predicted == label) & (truth == label)).sum()
        dice = 2 * both / ((predicted == label).sum() + (truth == label).sum())
        assert dice.item() == pytest.approx(2 * per_class[name] / (1 + per_class[name]), rel=1e-6)


def test_scores_do_not_depend_on_the_order_of_classes_or_images_nor_on_the_sides_of_the_image():
    pairs = random_pairs(7)
    scores, per_class = measured(pairs)
    order = torch.tensor([3, 0, 4, 1, 2])
    renamed = [(order[p], torch.where(t == IGNORE, t, order[t.clamp(max=4)])) for p, t in pairs]
    names = [NAMES[order.tolist().index(label)] for label in range(5)]
    again, again_per_class = measured(renamed, names)
    assert again == pytest.approx(scores)
    assert again_per_class == pytest.approx(per_class)
    assert measured(pairs[::-1])[0] == pytest.approx(scores)
    assert measured([(p.transpose(1, 2), t.transpose(1, 2)) for p, t in pairs])[0] == pytest.approx(scores)


def test_prediction_and_truth_can_change_places_without_ignored_pixels():
    pairs = [(predicted, torch.where(truth == IGNORE, 0, truth)) for predicted, truth in random_pairs(8)]
    assert measured([(truth, predicted) for predicted, truth in pairs])[0] == pytest.approx(measured(pairs)[0])


def test_pixel_accuracy_is_the_recall_of_each_class_weighted_by_its_pixels():
    pairs = random_pairs(9)
    kept = [(predicted[truth != IGNORE], truth[truth != IGNORE]) for predicted, truth in pairs]
    predicted, truth = (torch.cat(parts) for parts in zip(*kept, strict=True))
    shares = [((truth == c).float().mean(), (predicted[truth == c] == c).float().mean()) for c in range(5)]
    expected = sum((share * recall).item() for share, recall in shares)
    assert measured(pairs)[0]["pixel_accuracy"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_miou_of_one_image_is_that_of_a_set_of_one(seed):
    for predicted, truth in random_pairs(seed):
        for one, its_truth in zip(predicted, truth, strict=True):
            assert image_miou(one, its_truth, 5, IGNORE) == pytest.approx(
                measured([(one[None], its_truth[None])])[0]["miou"]
            )


def test_an_image_without_labels_has_no_miou():
    assert image_miou(torch.zeros(3, 4).long(), torch.full((3, 4), IGNORE), 5, IGNORE) is None
    with pytest.raises(LocAtError, match="a mask has the value 7"):
        image_miou(torch.zeros(1, 1).long(), torch.tensor([[7]]), 5, IGNORE)


def test_memory_does_not_grow_with_the_set():
    metrics = SegmentationMetrics([str(label) for label in range(150)], IGNORE)
    held = []
    for _ in range(3):
        metrics.update(torch.randint(150, (1, 64, 64)), torch.randint(150, (1, 64, 64)))
        held.append(
            sum(state.numel() for part in (metrics._pixels, metrics._boundary) for state in part.metric_state.values())
        )
    assert held == [150 * 150 + 3 * 150] * 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_counts_on_a_gpu_are_those_on_the_cpu():
    pairs = random_pairs(4)
    metrics = SegmentationMetrics(NAMES, IGNORE, device="cuda")
    for predicted, truth in pairs:
        metrics.update(predicted.cuda(), truth.cuda())
    scores, per_class = metrics.compute()
    expected, expected_per_class = measured(pairs)
    assert scores == pytest.approx(expected, rel=1e-6)
    assert per_class == pytest.approx(expected_per_class, rel=1e-6)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_boundary_without_width_is_refused(share):
    with pytest.raises(LocAtError, match=f"boundary_share is {share}; it must be a share of the diagonal"):
        SegmentationMetrics(NAMES, IGNORE, boundary_share=share)
