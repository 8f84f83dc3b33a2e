"""Segmentation folders and CamVid on top of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import plain_image, real_data
from PIL import Image

from locatvit.data import open_dataset
from locatvit.data.camvid import CLASSES
from locatvit.data.images import UnreadableImage
from locatvit.data.spec import ImageDataset
from locatvit.errors import LocAtError

LAYOUT = r"images/\{train,val\}/NAME.jpg, annotations/\{train,val\}/NAME.png"


def open_masks(root: Path | None, split: str = "train") -> ImageDataset:
    return open_dataset("folder", task="segmentation", split=split, root=root)  # type: ignore[arg-type]


def save_mask(root: Path, value: int) -> Path:
    path = root / "annotations" / "train" / "1.png"
    Image.fromarray(np.full((6, 8), value, dtype=np.uint8)).save(path)
    return path


def test_items_pair_image_and_mask(masks_folder: Path) -> None:
    train = open_masks(masks_folder)
    assert len(train) == 3
    image, mask = train[2]
    assert (image.mode, image.size) == ("RGB", (8, 6))
    assert image.getpixel((0, 0))[0] == 2
    assert mask.dtype == torch.int64
    assert mask.tolist() == [[0, 1, 2, 255] * 2] * 6
    assert train.spec.classes == ("road", "sky", "tree")
    assert train.spec.ignore_index == 255
    assert train.describe(2) == str(masks_folder / "images" / "train" / "2.jpg")
    assert len(open_masks(masks_folder, "val")) == 2


def test_transform_gets_both(masks_folder: Path) -> None:
    train = open_masks(masks_folder)
    train.transform = lambda image, mask: (image.size, mask.sum().item())
    assert train[0] == ((8, 6), 12 * (0 + 1 + 2 + 255))


def test_palette_masks_give_their_indices(masks_folder: Path) -> None:
    path = save_mask(masks_folder, 2)
    palette = Image.fromarray(np.full((6, 8), 2, dtype=np.uint8), "P")
    palette.putpalette([200, 10, 10] * 256)
    palette.save(path)
    assert open_masks(masks_folder)[1][1].unique().tolist() == [2]


@pytest.mark.parametrize("value", [3, 254])
def test_value_outside_the_classes_names_file_and_value(masks_folder: Path, value: int) -> None:
    path = save_mask(masks_folder, value)
    with pytest.raises(LocAtError, match=rf"mask {path} has the value {value}; classes are 0 to 2, and 255 is ignored"):
        open_masks(masks_folder)[1]


def test_sizes_that_differ_are_both_named(masks_folder: Path) -> None:
    plain_image(0, (7, 9)).save(masks_folder / "images" / "train" / "1.jpg")
    with pytest.raises(LocAtError, match=r"train/1.jpg is 7x9 \(height x width\) and its mask 6x8"):
        open_masks(masks_folder)[1]


@pytest.mark.parametrize(("dtype", "shape", "mode"), [(np.uint8, (6, 8, 3), "RGB"), (np.uint16, (6, 8), "I;16")])
def test_masks_with_colours_or_16_bits(masks_folder: Path, dtype: type, shape: tuple[int, ...], mode: str) -> None:
    path = masks_folder / "annotations" / "train" / "1.png"
    Image.fromarray(np.zeros(shape, dtype=dtype)).save(path)
    with pytest.raises(LocAtError, match=rf"mask {path} has mode {mode}; it must be 8-bit with one channel"):
        open_masks(masks_folder)[1]


def test_unreadable_image_and_mask(masks_folder: Path) -> None:
    for kind, name in (("annotations", "1.png"), ("images", "1.jpg")):
        (masks_folder / kind / "train" / name).write_bytes(b"broken")
        with pytest.raises(UnreadableImage, match=rf"{kind}/train/{name} cannot be read"):
            open_masks(masks_folder)[1]


def test_image_without_mask_and_mask_without_image(masks_folder: Path) -> None:
    (masks_folder / "annotations" / "train" / "1.png").unlink()
    with pytest.raises(LocAtError, match=r"image .*images/train/1.jpg has no mask .*annotations/train/1.png; add"):
        open_masks(masks_folder)
    (masks_folder / "annotations" / "train" / "0.png").unlink()
    with pytest.raises(LocAtError, match=r"train/0.jpg has no mask .* \(2 such files\)"):
        open_masks(masks_folder)
    (masks_folder / "images" / "val" / "1.jpg").unlink()
    with pytest.raises(LocAtError, match=r"mask .*annotations/val/1.png has no image .*images/val/1.jpg"):
        open_masks(masks_folder, "val")


def test_name_that_stands_for_two_images(masks_folder: Path) -> None:
    plain_image(0).save(masks_folder / "images" / "train" / "1.png")
    with pytest.raises(LocAtError, match=r"images/train has 1.jpg and 1.png; a name must stand for one file"):
        open_masks(masks_folder)


@pytest.mark.parametrize("missing", ["images/train", "annotations/train", "classes.txt"])
def test_missing_part_names_the_layout(masks_folder: Path, missing: str) -> None:
    path = masks_folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(LocAtError, match=rf"no (folder|file) {path}; expected .*{LAYOUT}"):
        open_masks(masks_folder)


def test_root_is_needed() -> None:
    with pytest.raises(LocAtError, match=rf"'folder' needs root: the folder that holds {LAYOUT}"):
        open_masks(None)


def test_empty_data_set(masks_folder: Path) -> None:
    for kind in ("images", "annotations"):
        shutil.rmtree(masks_folder / kind / "val")
        (masks_folder / kind / "val").mkdir()
    with pytest.raises(LocAtError, match=r"images/val holds no images; expected images"):
        open_masks(masks_folder, "val")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n", "classes.txt is empty; it must have one class name a line"),
        ("a\n\nb\n", "classes.txt has no name in line 2"),
        ("a\nb\na\n", "classes.txt has the name 'a' a second time in line 3"),
    ],
)
def test_faulty_classes(masks_folder: Path, text: str, message: str) -> None:
    (masks_folder / "classes.txt").write_text(text)
    with pytest.raises(LocAtError, match=message):
        open_masks(masks_folder)


def test_camvid_has_camvids_classes(masks_folder: Path) -> None:
    with pytest.raises(
        LocAtError, match=r"has 3 classes \(road, ...\), not CamVid's 11 .* open it as data set 'folder'"
    ):
        open_dataset("camvid", task="segmentation", split="train", root=masks_folder)
    (masks_folder / "classes.txt").write_text("\n".join(CLASSES))
    train = open_dataset("camvid", task="segmentation", split="train", root=masks_folder)
    assert (train.spec.name, train.spec.num_classes, train.spec.image_size) == ("camvid", 11, (360, 480))


def test_real_camvid() -> None:
    root = real_data("camvid")
    val = open_dataset("camvid", task="segmentation", split="val", root=root)
    assert len(open_dataset("camvid", task="segmentation", split="train", root=root)) == 367
    assert len(val) == 101
    image, mask = val[50]
    assert (image.height, image.width) == tuple(mask.shape) == val.spec.image_size
