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
