"""Unreadable images: named, counted, replaced, limited."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from data_files import error_of
from torchvision.transforms.v2.functional import pil_to_tensor

from locatvit.data import open_dataset
from locatvit.data.loader import make_loader
from locatvit.data.tolerant import TolerantDataset
from locatvit.errors import LocAtError


def with_broken(folder: Path, *numbers: int) -> TolerantDataset:
    """The five training images, whose grey values are their numbers; the numbers given are broken."""
    train = open_dataset("folder", task="classification", split="train", root=folder, transform=pil_to_tensor)
    for number in numbers:
        Path(train.describe(number)).write_bytes(b"broken")
    return TolerantDataset(train, max_bad_images=2)


def grey(item: tuple[torch.Tensor, int]) -> int:
    return int(item[0][0, 0, 0])


def test_next_readable_image_stands_in(image_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = with_broken(image_folder, 3, 4)
    with caplog.at_level(logging.WARNING):
        items = [dataset[index] for index in range(5)] + [dataset[3]]
    assert [grey(item) for item in items] == [0, 1, 2, 0, 0, 0]
    assert [label for _, label in items] == [0, 0, 0, 0, 0, 0]
    assert dataset.bad_images == [dataset.dataset.describe(3), dataset.dataset.describe(4)]
    assert [dataset.dataset.describe(3) in record.message for record in caplog.records] == [True, False]
    assert "(2 unreadable so far, 2 allowed)" in caplog.records[1].message


def test_one_more_than_allowed_stops_with_all_names(image_folder: Path) -> None:
    dataset = with_broken(image_folder, 0, 2, 4)
    assert [grey(dataset[index]) for index in range(4)] == [1, 1, 3, 3]
    with pytest.raises(LocAtError, match=r"3, more than max_bad_images 2: \S+/0.png, \S+/2.png, \S+/1.png; the last"):
        dataset[4]


def test_no_image_at_all_can_be_read(image_folder: Path) -> None:
    dataset = TolerantDataset(with_broken(image_folder, 0, 1, 2, 3, 4).dataset, max_bad_images=9)
    with pytest.raises(LocAtError, match="none of the 5 images can be read"):
        dataset[0]


def test_limit_must_not_be_negative(image_folder: Path) -> None:
    with pytest.raises(LocAtError, match="max_bad_images is -1; it must be 0 or more"):
        TolerantDataset(with_broken(image_folder).dataset, max_bad_images=-1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_error_reaches_the_caller_as_one_plain_line(image_folder: Path, num_workers: int) -> None:
    dataset = with_broken(image_folder, 1).dataset
    loader = make_loader(dataset, batch_size=2, training=False, num_workers=num_workers)
    message = str(error_of(loader))
    name = dataset.describe(1)
    assert message.startswith(f"unreadable images: 1, more than max_bad_images 0: {name}; the last: image")
    assert message.endswith("Mend or remove them, or raise max_bad_images")
    assert "\n" not in message


def test_mask_error_leaves_a_worker_plain(masks_folder: Path) -> None:
    (masks_folder / "classes.txt").write_text("road\nsky\n")
    dataset = open_dataset("folder", task="segmentation", split="train", root=masks_folder)
    message = str(error_of(make_loader(dataset, batch_size=1, training=False, num_workers=1)))
    assert message.startswith(f"mask {masks_folder}/annotations/train/0.png has the value 2; classes are 0 to 1")
    assert "\n" not in message


def test_workers_share_one_count(image_folder: Path) -> None:
    dataset = with_broken(image_folder, 0, 1, 4).dataset
    loader = make_loader(dataset, batch_size=1, training=False, num_workers=2, max_bad_images=3)
    for _ in range(2):
        assert [int(image[0, 0, 0, 0]) for image, _ in loader] == [2, 2, 2, 3, 2]
    assert len(loader.dataset.dataset.bad_images) == 3  # type: ignore[attr-defined]
    strict = make_loader(dataset, batch_size=1, training=False, num_workers=2, max_bad_images=2)
    assert "unreadable images: 3, more than max_bad_images 2" in str(error_of(strict))
