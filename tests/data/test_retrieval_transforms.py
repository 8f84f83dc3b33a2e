"""Crops for the memory and whole images for the queries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from locatvit.data.config import IMAGENET
from locatvit.data.loader import seed_generators
from locatvit.data.retrieval_config import PRESETS, RetrievalAugment
from locatvit.data.retrieval_transforms import memory_transform, query_transform
from locatvit.errors import LocAtError

NEUTRAL = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
SANE = RetrievalAugment(image_size=16).resolved("hummingbird", NEUTRAL)
AUTHORS = RetrievalAugment(image_size=16).resolved("hummingbird_locat", NEUTRAL)


def coloured(mask: torch.Tensor) -> Image.Image:
    """An image that shows its mask: red is 50 x class."""
    red = 50 * mask
    return Image.fromarray(torch.stack([red, 0 * red, 0 * red], dim=-1).to(torch.uint8).numpy())


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("augment", [SANE, AUTHORS])
def test_a_crop_is_a_function_of_the_seed(augment: RetrievalAugment) -> None:
    transform, image, mask = memory_transform(augment), noise(40, 60), torch.randint(9, (40, 60))

    def draw(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        seed_generators(seed, 2, 3)
        return transform(image, mask)

    for part, same in zip(draw(1), draw(1), strict=True):
        assert torch.equal(part, same)
        assert type(part) is torch.Tensor
    assert not torch.equal(draw(1)[0], draw(2)[0])
    assert draw(1)[0].shape == (3, 16, 16)
    assert draw(1)[1].shape == (16, 16)


@pytest.mark.parametrize(
    "augment", [replace(SANE, jitter=0), replace(AUTHORS, jitter=0, mean=(0, 0, 0), std=(1, 1, 1))]
)
def test_image_and_mask_go_together(augment: RetrievalAugment) -> None:
    mask = torch.arange(3).repeat_interleave(40).expand(90, -1)
    transform = memory_transform(replace(augment, image_size=60))
    for _ in range(20):
        image, cropped = transform(coloured(mask), mask)
        assert cropped.dtype == torch.int64
        # but for the edges, where the image is a mixture
        agree = ((image[0] * 255 / 50).round().long() == cropped).float().mean()
        assert agree > 0.85


def test_crops_keep_half_the_area_or_more() -> None:
    rows, columns = torch.meshgrid(torch.arange(120), torch.arange(120), indexing="ij")
    place = rows * 120 + columns
    for augment in (SANE, AUTHORS):
        transform = memory_transform(replace(augment, image_size=120))
        areas = []
        for _ in range(200):
            _, cropped = transform(noise(120, 120), place)
            height = (cropped[-1, 0] // 120 - cropped[0, 0] // 120 + 1).item()
            width = (cropped[0, -1] % 120 - cropped[0, 0] % 120 + 1).item()
            assert 3 / 4 - 0.05 < width / height < 4 / 3 + 0.05
            areas.append(height * width / 120**2)
        assert 0.47 < min(areas) < 0.6
        assert max(areas) > 0.85


def test_the_authors_slip_in_blue_and_their_order() -> None:
    assert AUTHORS.std == (0.229, 0.224, 0.255)
    assert AUTHORS.mean == IMAGENET[0]
    image, _ = query_transform(AUTHORS, 4, resize_mask=True)(
        Image.new("RGB", (20, 10), (255, 255, 255)), torch.zeros(10, 20, dtype=torch.long)
    )
    torch.testing.assert_close(image[:, 3, 5], torch.tensor([0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.255]))
    # a normalised black image that is cropped stays what black is; were it cropped first, it would be the same, but
    # the draws of the jitter come before those of the crop
    transform, mask = memory_transform(AUTHORS), torch.arange(3600).view(60, 60)
    torch.manual_seed(7)
    _, with_jitter = transform(noise(60, 60), mask)
    torch.manual_seed(7)
    _, without = memory_transform(replace(AUTHORS, jitter=0))(noise(60, 60), mask)
    assert not torch.equal(with_jitter, without)
    torch.manual_seed(7)
    _, with_jitter = memory_transform(SANE)(noise(60, 60), mask)
    torch.manual_seed(7)
    _, without = memory_transform(replace(SANE, jitter=0))(noise(60, 60), mask)
    assert torch.equal(with_jitter, without)


def test_queries_keep_their_ratio_up_to_a_patch() -> None:
    mask = torch.randint(9, (100, 151))
    transform = query_transform(replace(SANE, image_size=224), 16, resize_mask=False)
    image, same = transform(noise(100, 151), mask)
    assert image.shape == (3, 224, 336)  # 338.24 would be the ratio's
    assert same is mask
    assert transform(noise(151, 100), mask.T)[0].shape == (3, 336, 224)
    _, resized = query_transform(replace(SANE, image_size=224), 16, resize_mask=True)(noise(100, 151), mask)
    assert resized.shape == (224, 336)
    assert set(resized.unique().tolist()) <= set(range(9))


def test_the_authors_queries_are_squashed() -> None:
    mask = torch.randint(9, (100, 151))
    image, resized = query_transform(AUTHORS, 4, resize_mask=True)(noise(100, 151), mask)
    assert (image.shape, resized.shape) == ((3, 16, 16), (16, 16))


def test_what_is_resolved_and_what_is_changed() -> None:
    own = ((0.5, 0.5, 0.5), (0.4, 0.5, 0.6))
    sane = RetrievalAugment().resolved("hummingbird", own)
    assert (sane.mean, sane.std, sane.crop_scale) == (*own, (0.5, 1.0))
    assert (sane.crop_first, sane.query_resize) == (True, "keep_ratio")
    assert sane.changed("hummingbird", own) == {}
    assert RetrievalAugment().changed("hummingbird_locat", own) == {}
    other = RetrievalAugment(image_size=448, query_resize="squash", mean=(0, 0, 0), std=(1, 1, 1))
    assert other.changed("hummingbird", own) == {
        "image_size": 448, "query_resize": "squash", "mean": (0, 0, 0), "std": (1, 1, 1),
    }  # fmt: skip
    assert "mean" not in other.changed("hummingbird", None)
    with pytest.raises(LocAtError, match="the backbone does not tell how its images were normalised; give augment.mea"):
        RetrievalAugment().resolved("hummingbird", None)
    assert set(PRESETS) == {"hummingbird", "hummingbird_locat"}


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"image_size": 0}, "image_size is 0; it must be a whole number of pixels"),
        ({"jitter": 0.7}, r"jitter is 0.7; it must be in \[0, 0.5\], 0 for none"),
        ({"jitter_probability": 2}, "jitter_probability is 2; it must be a probability"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale is .*; it must be .* 0 < least <= most"),
        ({"crop_scale": [1.5, 2.0]}, r"crop_scale is \(1.5, 2.0\); its least share must be 1 or less, or none fits"),
        ({"crop_ratio": (2, 1)}, r"crop_ratio is \(2, 1\)"),
        ({"query_resize": "crop"}, "query_resize is 'crop'; it must be one of keep_ratio, squash"),
        ({"mean": (0, 0, 0)}, r"mean is \(0, 0, 0\) and std is None; give both, or neither"),
        ({"mean": (0, 0, 0), "std": (1, 0, 1)}, "each must have three numbers, and std positive"),
    ],
)
def test_a_value_outside_its_range_is_refused(values: dict, rule: str) -> None:
    with pytest.raises(LocAtError, match=rule):
        RetrievalAugment(**values)
