"""Image folders for classification, and the decoding of images."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from data_files import plain_image
from PIL import Image

from locatvit.data import open_dataset
from locatvit.data.images import UnreadableImage, read_image
from locatvit.data.spec import ImageDataset
from locatvit.errors import LocAtError

LAYOUT = r"train/<class>/<name>.jpg and val/<class>/<name>.jpg"


def open_folder(root: Path | None, split: str = "train") -> ImageDataset:
    return open_dataset("folder", task="classification", split=split, root=root)  # type: ignore[arg-type]


def test_items_in_the_order_of_classes_and_names(image_folder: Path) -> None:
    train = open_folder(image_folder)
    assert train.spec.classes == ("cat", "dog")
    items = [(image.getpixel((0, 0))[0], label) for image, label in (train[index] for index in range(len(train)))]
    assert items == [(0, 0), (1, 0), (2, 0), (3, 1), (4, 1)]
    assert train.describe(4) == str(image_folder / "train" / "dog" / "1.png")


@pytest.mark.parametrize("name", ["validation", "test"])
def test_other_names_of_the_validation_split(image_folder: Path, name: str) -> None:
    (image_folder / "val").rename(image_folder / name)
    assert len(open_folder(image_folder, "val")) == 2


def test_validation_numbers_classes_as_training_does(image_folder: Path) -> None:
    shutil.rmtree(image_folder / "val" / "cat")
    val = open_folder(image_folder, "val")
    assert val.spec.classes == ("cat", "dog")
    assert [val[index][1] for index in range(len(val))] == [1]


def test_validation_without_training_split(image_folder: Path) -> None:
    shutil.rmtree(image_folder / "train")
    assert open_folder(image_folder, "val").spec.num_classes == 2


def test_validation_class_that_training_has_not(image_folder: Path) -> None:
    (image_folder / "val" / "cow").mkdir()
    with pytest.raises(LocAtError, match=r"val has the class 'cow', which .*train has not"):
        open_folder(image_folder, "val")


def test_missing_folder_names_the_layout(tmp_path: Path) -> None:
    with pytest.raises(LocAtError, match=rf"no folder {tmp_path}/train for split 'train'; .*{LAYOUT}"):
        open_folder(tmp_path)
    with pytest.raises(LocAtError, match=rf"'folder' needs root: the folder that holds {LAYOUT}"):
        open_folder(None)


def test_empty_folders(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(LocAtError, match=rf"train has no class folders; expected {LAYOUT}"):
        open_folder(tmp_path)
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(LocAtError, match=rf"train holds no images; expected {LAYOUT}"):
        open_folder(tmp_path)


def test_truncated_and_foreign_images_are_named(image_folder: Path) -> None:
    broken = image_folder / "train" / "cat" / "1.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(broken)
    whole = broken.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:40], b"<html>", b""):
        broken.write_bytes(content)
        with pytest.raises(UnreadableImage, match=rf"image {broken} cannot be read: \S"):
            open_folder(image_folder)[1]


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "image.tif"
    plain_image(255).convert(mode).save(path)
    image = read_image(path, "image.tif")
    assert image.mode == "RGB"
    assert image.getpixel((0, 0)) == (255, 255, 255)


def test_palette_with_transparency_gives_no_warning(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    plain_image(7).convert("P").save(path, transparency=b"\x00\x10")
    assert read_image(path, "image.png").mode == "RGB"


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(path)
    with pytest.raises(UnreadableImage, match=r"deep has mode I;16; it must have 8 bits a channel"):
        read_image(path, "deep")
