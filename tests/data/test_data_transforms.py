"""What transforms do to images and masks."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from data_files import plain_image
from PIL import Image
from torchvision import tv_tensors

from locatvit.data.config import ClassificationAugment, SegmentationAugment
from locatvit.data.loader import seed_generators
from locatvit.data.transforms import (
    ClassShareCrop,
    PhotometricDistort,
    ResizeWithin,
    classification_transform,
    segmentation_transform,
)

PLAIN = ClassificationAugment(
    image_size=17, rand_augment=None, random_erasing=0.0, horizontal_flip=0.0, mean=(0, 0, 0), std=(1, 1, 1)
)
STILL = SegmentationAugment(
    short_side=12,
    long_side_max=48,
    ratio_range=(1, 1),
    crop_size=(12, 12),
    max_class_share=1,
    horizontal_flip=0,
    photometric=False,
)


def coloured(mask: torch.Tensor) -> Image.Image:
    """An image that shows its mask: red is 50 x class."""
    red = 50 * mask
    return Image.fromarray(torch.stack([red, 0 * red, 0 * red], dim=-1).to(torch.uint8).numpy())


def same_after_same_seed(draw: Callable[[], torch.Tensor]) -> bool:
    seed_generators(1, 2, 3)
    first = draw()
    seed_generators(1, 2, 3)
    return torch.equal(first, draw())


def test_evaluation_resizes_crops_the_middle_and_normalises() -> None:
    # 224 / 0.9 = 248.9: the short side of 248 stays, and 12 pixels go on each side
    pixels = np.full((248, 300, 3), 255, dtype=np.uint8)
    pixels[:12] = pixels[-12:] = 0
    pixels[:, :38] = pixels[:, -38:] = 0
    image = classification_transform(ClassificationAugment(), training=False)(Image.fromarray(pixels))
    assert image.shape == (3, 224, 224)
    assert image.dtype == torch.float32
    assert torch.equal(image, torch.ones_like(image)), "(1 - 0.5) / 0.5"


def test_training_crop_of_a_plain_image_stays_plain() -> None:
    image = classification_transform(PLAIN, training=True)(plain_image(51, (29, 41)))
    assert torch.allclose(image, torch.full((3, 17, 17), 0.2))


def test_training_draws_from_the_seeded_generators() -> None:
    transform = classification_transform(ClassificationAugment(image_size=32), training=True)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    assert same_after_same_seed(lambda: transform(picture))
    assert not torch.equal(transform(picture), transform(picture))


def test_random_crop_padding_moves_the_image_over_black() -> None:
    transform = classification_transform(replace(PLAIN, random_crop_padding=4), training=True)
    moves = set()
    for _ in range(60):
        white = (transform(plain_image(255, (17, 17))) == 1).all(dim=0)
        rows, columns = white.any(dim=1).sum().item(), white.any(dim=0).sum().item()
        assert white.sum() == rows * columns
        assert min(rows, columns) >= 13
        moves.add((rows, columns))
    assert len(moves) > 10


def test_random_erasing_and_rand_augment_change_the_image() -> None:
    plain = plain_image(128, (17, 17))
    erased = classification_transform(replace(PLAIN, random_erasing=1.0), training=True)(plain)
    assert 0 < (erased != 128 / 255).float().mean() < 0.5
    augmented = classification_transform(replace(PLAIN, rand_augment="rand-m9-n4"), training=True)
    assert any(not torch.equal(augmented(plain), torch.full((3, 17, 17), 128 / 255)) for _ in range(5))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (512, 683)),
        ((640, 480), (683, 512)),
        ((300, 3000), (205, 2048)),
        ((100, 100), (512, 512)),
    ],
)
def test_resize_keeps_the_ratio_within_both_sides(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert ResizeWithin(512, 2048)(tv_tensors.Image(torch.zeros(3, *size))).shape[1:] == expected


def test_resize_draws_the_ratio_for_both_sides() -> None:
    resize = ResizeWithin(20, 80, (0.5, 2.0))
    heights = [resize(tv_tensors.Image(torch.zeros(3, 10, 60))).shape[1] for _ in range(200)]
    # the long side decides: 80 / 60 x 10 = 13.3, times 0.5 to 2
    assert 7 <= min(heights) <= 8
    assert 25 <= max(heights) <= 27


def test_segmentation_evaluation_leaves_the_mask() -> None:
    mask = torch.randint(3, (10, 14))
    image, same = segmentation_transform(STILL, training=False)(coloured(mask), mask)
    assert same is mask
    assert image.shape == (3, 12, 17)
    assert type(image) is torch.Tensor


def test_image_and_mask_go_together() -> None:
    augment = replace(STILL, crop_size=(7, 5), horizontal_flip=0.5, mean=(0, 0, 0), std=(1, 1, 1))
    transform = segmentation_transform(augment, training=True)
    mask = torch.randint(5, (12, 19))
    seen = set()
    for _ in range(40):
        image, cropped = transform(coloured(mask), mask)
        assert image.shape == (3, 7, 5)
        assert cropped.dtype == torch.int64
        assert type(image) is type(cropped) is torch.Tensor
        assert torch.equal((image[0] * 255 / 50).round().long(), cropped)
        seen.add(tuple(cropped.flatten().tolist()))
    assert len(seen) > 20


def test_resized_masks_hold_only_classes() -> None:
    augment = replace(STILL, short_side=9, ratio_range=(0.5, 2.0), crop_size=(18, 18))
    mask = torch.tensor([0, 7, 255]).repeat_interleave(5)[None, :].expand(12, -1)
    for _ in range(10):
        _, resized = segmentation_transform(augment, training=True)(coloured(mask % 5), mask)
        assert set(resized.unique().tolist()) <= {0, 7, 255}


def test_padding_is_zero_after_normalising_and_ignored_in_the_mask() -> None:
    augment = replace(STILL, crop_size=(16, 20))
    mask = torch.ones(12, 13, dtype=torch.int64)
    image, padded = segmentation_transform(augment, training=True, ignore_index=200)(coloured(mask), mask)
    inside = torch.zeros(16, 20, dtype=torch.bool)
    inside[:12, :13] = True
    assert torch.equal(padded, torch.where(inside, 1, 200))
    assert (image[:, ~inside] == 0).all()
    assert torch.allclose(image[0, inside], torch.tensor((50 / 255 - 0.485) / 0.229))


def test_crop_keeps_one_class_below_its_share() -> None:
    mask = tv_tensors.Mask(torch.zeros(40, 100, dtype=torch.int64))
    mask[:, 50:] = 1
    mask[:, 60:] = 255

    def largest_share(max_class_share: float) -> list[float]:
        crop = ClassShareCrop((40, 40), max_class_share, ignore_index=255)
        shares = []
        for _ in range(60):
            counts = crop(mask).as_subclass(torch.Tensor).flatten().bincount(minlength=256)[:2].float()
            shares.append((counts.max() / counts.sum().clamp(min=1)).item())
        return shares

    # less than half of the 61 offsets give such a crop, but ten tries find one nearly always
    assert np.mean(np.array(largest_share(0.75)) <= 0.75) > 0.95
    assert np.mean(np.array(largest_share(1.0)) <= 0.75) < 0.65


def test_crop_of_nothing_but_ignored_pixels_is_drawn_again() -> None:
    mask = tv_tensors.Mask(torch.full((8, 80), 255))
    mask[:4, :8], mask[4:, :8] = 0, 1
    crop = ClassShareCrop((8, 8), 0.75, ignore_index=255)
    labelled = [(crop(mask) != 255).any().item() for _ in range(100)]
    # a single draw meets the labelled part with probability 8 / 73, ten draws with 0.69
    assert np.mean(labelled) > 0.5


def test_photometric_distortion_changes_values_but_not_the_order_of_channels() -> None:
    distort = PhotometricDistort()
    red = tv_tensors.Image(torch.tensor([200, 30, 30], dtype=torch.uint8)[:, None, None].expand(3, 4, 4))
    results = [distort(red)[:, 0, 0].tolist() for _ in range(40)]
    assert all(max(result) == result[0] for result in results)
    assert len({tuple(result) for result in results}) > 20


def distorted(pixel: list[int], *steps: tuple[str, float]) -> list[int]:
    image = tv_tensors.Image(torch.tensor(pixel, dtype=torch.uint8)[:, None, None])
    return PhotometricDistort().transform(image, {"steps": list(steps)}).flatten().tolist()


@pytest.mark.parametrize("pixel", [[200, 30, 90], [13, 240, 7], [100, 100, 100], [0, 0, 0], [255, 254, 0]])
@pytest.mark.parametrize("factor", [0.5, 0.8, 1.5])
def test_saturation_and_hue_are_those_of_hsv(pixel: list[int], factor: float) -> None:
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in pixel))
    expected = colorsys.hsv_to_rgb(hue, min(1, saturation * factor), value)
    assert distorted(pixel, ("saturation", factor)) == pytest.approx([255 * part for part in expected], abs=0.51)
    turned = colorsys.hsv_to_rgb((hue + factor / 10) % 1, saturation, value)
    assert distorted(pixel, ("hue", factor / 10)) == pytest.approx([255 * part for part in turned], abs=1.01)


def test_brightness_is_added_and_contrast_multiplied() -> None:
    assert distorted([10, 100, 250], ("brightness", 20 / 255)) == [30, 120, 255]
    assert distorted([10, 100, 250], ("brightness", -20 / 255)) == [0, 80, 230]
    assert distorted([10, 100, 250], ("contrast", 1.5)) == [15, 150, 255]
    assert distorted([10, 100, 250], ("brightness", 20 / 255), ("contrast", 0.5)) == [15, 60, 127]


def test_each_distortion_happens_half_of_the_time_and_contrast_at_either_end() -> None:
    drawn = [[name for name, _ in PhotometricDistort().make_params([])["steps"]] for _ in range(400)]
    for name in ("brightness", "contrast", "saturation", "hue"):
        assert 140 < sum(name in steps for steps in drawn) < 260
    together = [
        steps for steps in drawn if "contrast" in steps and len(steps) > 1 and steps != ["brightness", "contrast"]
    ]
    assert 0.25 < np.mean([steps[-1] == "contrast" for steps in together]) < 0.75


def test_masks_are_not_distorted() -> None:
    mask = tv_tensors.Mask(torch.randint(9, (6, 6)))
    image = tv_tensors.Image(torch.randint(256, (3, 6, 6), dtype=torch.uint8))
    assert all(torch.equal(PhotometricDistort()(image, mask)[1], mask) for _ in range(10))


@pytest.mark.parametrize("size", [(12, 31), (31, 12), (9, 9)])
def test_without_randomness_an_image_is_the_same_every_time(size: tuple[int, int]) -> None:
    """Resize, then the middle; what is smaller than the crop is padded."""
    augment = SegmentationAugment(
        short_side=12, long_side_max=48, crop_size=(16, 20), random=False, mean=(0, 0, 0), std=(1, 1, 1)
    )
    transform = segmentation_transform(augment, training=True)
    mask = torch.randint(5, size)
    first, second = (transform(coloured(mask), mask) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert first[0].shape == (3, 16, 20)
    resized = ResizeWithin(12, 48)(tv_tensors.Mask(mask))
    top, left = (max(0, side - crop) // 2 for side, crop in zip(resized.shape, (16, 20), strict=True))
    middle = resized[top : top + 16, left : left + 20]
    assert torch.equal(first[1][: middle.shape[0], : middle.shape[1]], middle.as_subclass(torch.Tensor))
    assert (first[1] == 255).sum() == 16 * 20 - middle.numel()


def test_made_smaller_without_antialiasing_unless_asked_for() -> None:
    picture = Image.fromarray(
        np.tile(np.array([0, 0, 0, 255], dtype=np.uint8)[:, None], (16, 64, 3)).reshape(64, 64, 3)
    )
    mask = torch.zeros(64, 64, dtype=torch.int64)
    augment = SegmentationAugment(short_side=16, long_side_max=16, mean=(0, 0, 0), std=(1, 1, 1))
    rough, smooth = (
        segmentation_transform(replace(augment, antialias=antialias), training=False)(picture, mask)[0].std()
        for antialias in (False, True)
    )
    assert rough != smooth


def test_full_training_pipeline_is_a_function_of_the_seed() -> None:
    transform = segmentation_transform(SegmentationAugment(short_side=24, crop_size=(24, 24)), training=True)
    mask = torch.randint(3, (20, 30))
    assert same_after_same_seed(lambda: torch.cat([part.flatten().float() for part in transform(coloured(mask), mask)]))
