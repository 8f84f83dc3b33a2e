"""The whole path of a test image, from files to scores, with a backbone that reads the labels off the picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from locatvit.data import open_dataset
from locatvit.data.config import SegmentationAugment
from locatvit.data.loader import make_loader
from locatvit.data.transforms import segmentation_transform
from locatvit.evaluation.config import SegmentationConfig
from locatvit.evaluation.segmentation import (
    build_head,
    build_optimizer,
    evaluate_segmentation,
    ramped_schedule,
    segmentation_loss,
)
from locatvit.features import Features

CLASSES = ("red", "green", "blue")
IGNORE, PATCH = 255, 16
PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1)}
LOCAT = SegmentationConfig("locat")
LINEAR = SegmentationConfig("linear", window_size=64, window_stride=48)


def stripes(generator: np.random.Generator, size: tuple[int, int], width: int) -> np.ndarray:
    """Labels in vertical stripes, [H, W]: logits of one stripe meet those of two others at most."""
    return np.repeat(generator.integers(0, 3, size[1] // width), width)[None].repeat(size[0], axis=0).astype(np.uint8)


def write(root: Path, sizes: dict[str, list[tuple[int, int]]], width: int, shuffled: bool = False) -> Path:
    """Pictures that show their masks in pure colours; some pixels of the masks are ignored."""
    generator = np.random.default_rng(0)
    (root / "classes.txt").parent.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for split, all_sizes in sizes.items():
        for part in ("images", "annotations"):
            (root / part / split).mkdir(parents=True)
        for number, size in enumerate(all_sizes):
            mask = stripes(generator, size, width)
            picture = (np.eye(3)[mask] * 255).astype(np.uint8)
            if shuffled:
                mask = generator.permutation(mask.ravel()).reshape(size)
            mask[generator.random(size) < 0.1] = IGNORE
            Image.fromarray(picture).save(root / "images" / split / f"{number}.png")
            Image.fromarray(mask).save(root / "annotations" / split / f"{number}.png")
    return root


def read_colours(images: Tensor) -> Features:
    """One-hot colours in the middle of each patch; like our ViTs it pads with black at the right and the bottom."""
    bottom, right = (-side % PATCH for side in images.shape[-2:])
    padded = F.pad(images, (0, right, 0, bottom))
    # of a patch that is half padding, what there is of the picture
    middle = padded.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)[..., :4, 6:10].mean(dim=(-1, -2))
    tokens = F.one_hot(middle.argmax(dim=1), 3).flatten(1, 2).float()
    return Features(None, tokens[:, :0], tokens, (middle.shape[-2], middle.shape[-1]))


class Copy(nn.Module):
    """A head whose logits are the features."""

    def forward(self, features: Features) -> Tensor:
        return features.patch_map


def scores_of(root: Path, short_side: int, config: SegmentationConfig, head: nn.Module | None = None):
    augment = SegmentationAugment(short_side=short_side, **PLAIN)
    transform = segmentation_transform(augment, training=False)
    dataset = open_dataset("folder", task="segmentation", split="val", root=root, transform=transform)
    loader = make_loader(dataset, batch_size=1, training=False)
    return evaluate_segmentation(read_colours, head or Copy(), loader, CLASSES, IGNORE, config=config)


@pytest.mark.parametrize("protocol", ["locat", "linear"])
@pytest.mark.parametrize(
    ("sizes", "width", "short_side", "window"),
    [
        pytest.param([(48, 64), (48, 96), (48, 48)], 8, 96, (64, 48), id="enlarged"),
        # windows that end where a stripe does would move its edge by a part of a pixel
        pytest.param([(192, 256), (192, 256)], 64, 96, (80, 48), id="made smaller"),
        pytest.param([(40, 64), (40, 128)], 16, 40, (64, 32), id="padded by the backbone"),
    ],
)
def test_a_model_that_copies_the_labels_scores_one(tmp_path, protocol, sizes, width, short_side, window):
    size, stride = window
    config = LOCAT if protocol == "locat" else SegmentationConfig(protocol, window_size=size, window_stride=stride)
    scores, per_class = scores_of(write(tmp_path, {"val": sizes}, width), short_side, config)
    assert scores == {"miou": 1.0, "pixel_accuracy": 1.0, "boundary_iou": 1.0}
    assert per_class == dict.fromkeys(CLASSES, 1.0)


@pytest.mark.parametrize("config", [LOCAT, LINEAR], ids=lambda config: config.protocol)
def test_shuffled_labels_score_chance(tmp_path, config):
    """A pixel's class c and the prediction are then independent: of share p both, they meet in p^2 of the pixels."""
    root = write(tmp_path, {"val": [(96, 192)] * 12}, 16, shuffled=True)
    scores, _ = scores_of(root, 96, config)
    shares = []
    for path in sorted((root / "annotations/val").iterdir()):
        mask = np.asarray(Image.open(path))
        shares.append(np.bincount(mask[mask != IGNORE], minlength=3) / (mask != IGNORE).sum())
    both = np.mean(np.square(shares), axis=0)
    expected = both / (2 * np.mean(shares, axis=0) - both)
    assert scores["pixel_accuracy"] == pytest.approx(both.sum(), abs=0.01)
    assert scores["miou"] == pytest.approx(expected.mean(), abs=0.01)
    assert scores["miou"] < 0.35


@pytest.mark.parametrize("random", [True, False])
@pytest.mark.parametrize("config", [LOCAT, LINEAR], ids=lambda config: config.protocol)
def test_a_head_learns_the_labels_through_crops_padding_and_windows(tmp_path, config, random):
    """From the training transform, which draws size and crop and pads what is too small, to the test's windows."""
    root = write(tmp_path, {"train": [(48, 96)] * 8, "val": [(48, 96), (48, 128)]}, 16)
    augment = SegmentationAugment(
        short_side=96, crop_size=(128, 96), ratio_range=(1.0, 1.5), photometric=False, random=random,
        max_class_share=1, **PLAIN,
    )  # fmt: skip
    dataset = open_dataset(
        "folder",
        task="segmentation",
        split="train",
        root=root,
        transform=segmentation_transform(augment, training=True),
    )
    loader = make_loader(dataset, batch_size=4, training=True)
    torch.manual_seed(0)
    config = replace(config, num_updates=60, lr=0.02)
    head = build_head(config, 3, 3)
    optimizer = build_optimizer(head, config)
    schedule = ramped_schedule(optimizer, SegmentationConfig("linear", num_updates=60))
    padded = 0
    for epoch in range(30):
        loader.set_epoch(epoch)
        for images, masks in loader:
            padded += int((masks[:, -8:] == IGNORE).all())
            loss = segmentation_loss(head, read_colours(images), masks, IGNORE)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    assert padded, "some crops must be padded"
    scores, _ = scores_of(root, 96, config, head)
    assert scores["miou"] > 0.98
