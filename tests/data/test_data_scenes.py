"""Procedural scenes: what they promise to a reader of labels and masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from locatvit.data import open_dataset
from locatvit.data.drawing import CLASSES, Scene, SceneConfig, draw_scene
from locatvit.errors import LocAtError


def scenes(number: int, **options: Any) -> list[Scene]:
    return [draw_scene(SceneConfig(**options), "train", index) for index in range(number)]


def test_scene_is_a_function_of_seed_split_and_index() -> None:
    first, again = draw_scene(SceneConfig(), "train", 7), draw_scene(SceneConfig(), "train", 7)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.mask, again.mask)
    others = (
        draw_scene(SceneConfig(), "val", 7),
        draw_scene(SceneConfig(), "train", 17),
        draw_scene(SceneConfig(seed=1), "train", 7),
    )
    assert all(not np.array_equal(first.image, other.image) for other in others)


def test_classes_are_balanced_and_masks_hold_them() -> None:
    drawn = scenes(200)
    assert np.bincount([scene.label for scene in drawn]).tolist() == [20] * 10
    assert {value for scene in drawn for value in np.unique(scene.mask)} == set(range(11))
    for scene in drawn:
        assert scene.image.shape == (64, 64, 3)
        assert scene.mask.shape == (64, 64)


@pytest.mark.parametrize("contrast", ["bright", "any"])
def test_main_shape_is_the_largest_and_near_the_middle(contrast: str) -> None:
    for scene in scenes(100, contrast=contrast):
        extents = {}
        for value in np.unique(scene.mask)[1:]:
            rows, columns = np.nonzero(scene.mask == value)
            extents[value] = max(np.ptp(rows), np.ptp(columns))
            if value == scene.label + 1:
                middle = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
                assert np.abs(np.array(middle) - 31.5).max() < 0.2 * 64
        main = extents.pop(scene.label + 1)
        assert main > 0.4 * 64
        # two small shapes of one class count as one here, so compare with what a single one can be
        assert main > 2 * 0.15 * 64


@pytest.mark.parametrize("contrast", ["bright", "any"])
def test_colour_does_not_tell_the_class(contrast: str) -> None:
    drawn = scenes(600, contrast=contrast)
    colours = np.array([scene.image[scene.mask == scene.label + 1].mean(axis=0) for scene in drawn])
    labels = np.array([scene.label for scene in drawn])
    known, unknown = slice(0, 300), slice(300, None)
    means = np.array([colours[known][labels[known] == label].mean(axis=0) for label in range(10)])
    guesses = np.linalg.norm(colours[unknown][:, None] - means, axis=2).argmin(axis=1)
    assert (guesses == labels[unknown]).mean() < 0.2, "a guess by colour is right in one of ten"


def test_upright_square_fills_its_box_and_a_turned_one_does_not() -> None:
    def filled(rotation: float) -> float:
        shares = []
        for scene in scenes(60, max_rotation=rotation, num_distractors=0)[CLASSES.index("square") :: 10]:
            rows, columns = np.nonzero(scene.mask == scene.label + 1)
            shares.append(len(rows) / ((np.ptp(rows) + 1) * (np.ptp(columns) + 1)))
        return min(shares)

    assert filled(0.0) > 0.98, "all but a corner pixel"
    assert filled(0.25) < 0.9


def test_distractors_are_labelled_and_of_other_classes() -> None:
    for scene in scenes(30, num_distractors=0):
        assert np.unique(scene.mask).tolist() == [0, scene.label + 1]
    counts = [len(np.unique(scene.mask)) for scene in scenes(30, num_distractors=3)]
    assert max(counts) == 5
    assert min(counts) >= 2


def test_bright_shapes_stand_out_from_the_ground() -> None:
    for scene in scenes(50):
        grey = scene.image.mean(axis=2)
        assert grey[scene.mask > 0].mean() > grey[scene.mask == 0].mean() + 20


def test_other_sizes() -> None:
    scene = draw_scene(SceneConfig(image_size=97), "val", 3)
    assert scene.image.shape == (97, 97, 3)
    assert (scene.mask == scene.label + 1).mean() > 0.04


def test_both_tasks_show_the_same_scene() -> None:
    labels = open_dataset("scenes", task="classification", split="val", num_images=13)
    masks = open_dataset("scenes", task="segmentation", split="val", num_images=13, cache=True)
    assert len(labels) == len(masks) == 13
    (image, label), (same, mask) = labels[12], masks[12]
    assert np.array_equal(np.asarray(image), np.asarray(same))
    assert mask.dtype == torch.int64
    assert label + 1 in mask.unique()
    assert labels.spec.classes == CLASSES
    assert masks.spec.classes == ("background", *CLASSES)
    assert (masks.spec.ignore_index, masks.spec.image_size) == (255, (64, 64))
    assert labels.describe(12) == "scene 12 of val, seed 0"
    with pytest.raises(IndexError):
        labels[13]


def test_transforms_are_applied() -> None:
    labels = open_dataset("scenes", task="classification", split="train", transform=lambda image: image.size)
    assert labels[11] == ((64, 64), 1)
    masks = open_dataset("scenes", task="segmentation", split="train", transform=lambda image, mask: mask.shape)
    assert masks[0] == (64, 64)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"image_size": 8}, "image_size of scenes is 8; it must be a whole number, 16 or more"),
        ({"num_distractors": -1}, "num_distractors of scenes is -1"),
        ({"seed": -1}, "seed of scenes is -1"),
        ({"clutter": 1.5}, "clutter of scenes is 1.5"),
        ({"max_rotation": 4.0}, "max_rotation of scenes is 4.0; it must be 0 to pi radians"),
        ({"noise": 2.0}, r"noise of scenes is 2.0; it must be in \[0, 1\]"),
        ({"contrast": "low"}, "contrast of scenes is 'low'; it must be bright or any"),
        ({"num_images": 0}, "num_images of scenes is 0; it must be 1 or more"),
        ({"root": "/data"}, "root is /data, but data set 'scenes' is drawn by the package; leave root out"),
    ],
)
def test_options_out_of_range(option: dict[str, Any], message: str) -> None:
    with pytest.raises(LocAtError, match=message):
        open_dataset("scenes", task="classification", split="train", **option)
