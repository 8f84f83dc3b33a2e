"""Features from the cache: an image is shown to the backbone once, and kept under what it was when it was read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from locatvit.data.segmentation_folder import SegmentationFolder
from locatvit.evaluation.feature_cache import FeatureCache
from locatvit.features import Features
from locatvit.recipes.segmentation_features import CachedImages, FeatureSource, collate_samples


class Patches:
    """In the place of a backbone: the mean colour of every 4 x 4 pixels; counts what it is shown."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, images: Tensor) -> Features:
        self.count += len(images)
        means = torch.nn.functional.avg_pool2d(images, 4)
        tokens = means.flatten(2).transpose(1, 2)
        return Features(None, tokens[:, :0], tokens, (means.shape[2], means.shape[3]))


def as_tensors(image: Image.Image, mask: Tensor) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255, mask


def paint(path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images with masks."""
    for part in ("images", "annotations"):
        (tmp_path / part / "train").mkdir(parents=True)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    for number in range(3):
        paint(tmp_path / "images" / "train" / f"{number}.png", number)
        mask = np.full((8, 12), number % 2, dtype=np.uint8)
        Image.fromarray(mask).save(tmp_path / "annotations" / "train" / f"{number}.png")
    return tmp_path


def picture(root: Path, index: int) -> Tensor:
    with Image.open(root / "images" / "train" / f"{index}.png") as image:
        return as_tensors(image, torch.empty(0))[0][None]


def parts(root: Path) -> tuple[CachedImages, FeatureSource, Patches]:
    cache, backbone = FeatureCache(root / "features", 2**20, {}), Patches()
    images = CachedImages(SegmentationFolder("train", root, as_tensors), cache)
    return images, FeatureSource(cache, backbone, torch.device("cpu")), backbone


def test_an_image_is_shown_once_and_its_features_are_the_same_from_the_disk(root: Path) -> None:
    images, source, backbone = parts(root)
    assert images.spec.classes == ("a", "b")
    computed, masks = source(collate_samples([images[index] for index in (2, 0, 1)]))
    assert backbone.count == 3
    assert masks[:, 0, 0].tolist() == [0, 0, 1]
    expected = torch.cat([Patches()(picture(root, index)).patches for index in (2, 0, 1)])
    assert torch.equal(computed.features.patches, expected)
    # of another run on the same files
    images, source, backbone = parts(root)
    again, same_masks = source(collate_samples([images[index] for index in (2, 0, 1)]))
    assert backbone.count == 0
    assert torch.equal(again.features.patches, expected)
    assert torch.equal(same_masks, masks)


def test_looking_keeps_nothing(root: Path) -> None:
    images, source, _ = parts(root)
    seen, mask = source.look(images[0][1])
    assert (seen.features.grid_size, tuple(mask.shape)) == ((2, 3), (8, 12))
    assert not (root / "features").exists()


def test_an_image_that_is_changed_after_it_was_read_is_not_taken_for_the_old_one(root: Path) -> None:
    images, source, backbone = parts(root)
    batch = collate_samples([images[0]])
    path = root / "images" / "train" / "0.png"
    paint(path, 7)
    os.utime(path, ns=(1, 1))  # a clock may be too coarse to tell
    old, _ = source(batch)
    new, _ = source(collate_samples([images[0]]))
    assert backbone.count == 2
    assert not torch.equal(old.features.patches, new.features.patches)
    assert torch.equal(source(collate_samples([images[0]]))[0].features.patches, new.features.patches)
    assert backbone.count == 2
