"""Augmentation as data: the paper's defaults, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from locatvit.data.config import ClassificationAugment, SegmentationAugment
from locatvit.errors import LocAtError


def test_lists_of_a_yaml_file_become_tuples() -> None:
    augment = SegmentationAugment(crop_size=[480, 480], ratio_range=[1, 2])  # type: ignore[arg-type]
    assert augment == SegmentationAugment(crop_size=(480, 480), ratio_range=(1, 2))
    assert hash(ClassificationAugment(mean=[0, 0, 0])) == hash(ClassificationAugment(mean=(0, 0, 0)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"image_size": 0}, "image_size is 0; it must be a whole number of pixels, 1 or more"),
        (
            {"rand_augment": "m9"},
            "rand_augment is 'm9'; it must be a policy of timm's, such as 'rand-m9-mstd0.5-inc1'",
        ),
        ({"rand_augment": "rand-x9"}, "rand_augment is 'rand-x9'"),
        ({"random_erasing": 1.5}, r"random_erasing is 1.5; it must be a probability in \[0, 1\]"),
        ({"horizontal_flip": -0.1}, "horizontal_flip is -0.1; it must be a probability"),
        ({"crop_scale": (0.0, 1.0)}, r"crop_scale is \(0.0, 1.0\); .* 0 < least <= most <= 1"),
        ({"crop_scale": (0.5, 1.1)}, r"crop_scale is \(0.5, 1.1\)"),
        ({"crop_ratio": (2.0, 1.0)}, r"crop_ratio is \(2.0, 1.0\); it must be \(least, most\)"),
        (
            {"interpolation": "lanczos"},
            "interpolation is 'lanczos'; it must be one of random, bilinear, bicubic",
        ),
        ({"crop_fraction": 0.0}, r"crop_fraction is 0.0; it must be in \(0, 1\]"),
        (
            {"std": (1.0, 0.0, 1.0)},
            r"std is \(1.0, 0.0, 1.0\); each must have three numbers, and std positive",
        ),
        ({"mean": (0.5,)}, r"mean is \(0.5,\)"),
        ({"random_crop_padding": -1}, "random_crop_padding is -1; it must be 0 or more pixels"),
    ],
)
def test_classification_options_out_of_range(option: dict[str, Any], message: str) -> None:
    with pytest.raises(LocAtError, match=message):
        ClassificationAugment(**option)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"short_side": -1}, "short_side is -1; it must be a whole number of pixels"),
        ({"long_side_max": 511}, r"long_side_max is 511; it must be short_side \(512\) or more"),
        (
            {"ratio_range": (0.0, 1.0)},
            r"ratio_range is \(0.0, 1.0\); it must be \(least, most\) with 0 < least",
        ),
        ({"crop_size": (512,)}, r"crop_size is \(512,\); it must be \(height, width\) in pixels"),
        ({"crop_size": (512, 0)}, "crop_size is 0; it must be a whole number of pixels a side"),
        ({"max_class_share": 0.0}, r"max_class_share is 0.0; it must be in \(0, 1\], 1 for any crop"),
        ({"horizontal_flip": 2}, "horizontal_flip is 2; it must be a probability"),
        ({"mean": (0.5,)}, r"mean is \(0.5,\)"),
    ],
)
def test_segmentation_options_out_of_range(option: dict[str, Any], message: str) -> None:
    with pytest.raises(LocAtError, match=message):
        SegmentationAugment(**option)


def test_sizes_are_the_data_sets_own_where_none_are_given() -> None:
    usual, context = SegmentationAugment().resolved("ade20k"), SegmentationAugment().resolved("pascal_context")
    assert (usual.short_side, usual.long_side_max, usual.crop_size) == (512, 2048, (512, 512))
    assert (context.short_side, context.long_side_max, context.crop_size) == (520, 520, (480, 480))
    assert usual == SegmentationAugment().resolved() == usual.resolved("pascal_context")
    assert (usual.mean, usual.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    half = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert SegmentationAugment().resolved(mean_std=half).std == half[1]
    given = SegmentationAugment(crop_size=(7, 9), mean=(0, 0, 0)).resolved("pascal_context", half)
    assert (given.short_side, given.crop_size, given.mean, given.std) == (520, (7, 9), (0, 0, 0), half[1])


def test_a_larger_short_side_is_not_bound_by_the_data_sets_long_side() -> None:
    assert SegmentationAugment(short_side=640).resolved("pascal_context").long_side_max == 640
    assert SegmentationAugment(short_side=640).resolved("ade20k").long_side_max == 2048


def test_what_differs_from_the_published_protocols_is_named() -> None:
    assert SegmentationAugment().changed("pascal_context") == {}
    assert SegmentationAugment(short_side=520).changed("pascal_context") == {}
    assert SegmentationAugment(short_side=512).changed("pascal_context") == {"short_side": 512}
    assert SegmentationAugment(random=False, antialias=True).changed() == {"random": False, "antialias": True}
    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert SegmentationAugment(mean=half[0], std=half[1]).changed(mean_std=half) == {}
    assert SegmentationAugment(mean=half[0]).changed() == {"mean": half[0]}
