"""Small data sets in the official formats of the segmentation benchmarks, written to the disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.io import savemat

SIZE = (6, 10)
"""Height and width of every image."""


def image(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """Coloured noise of (height, width)."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def columns(values: Sequence[int], size: tuple[int, int] = SIZE) -> np.ndarray:
    """Labels [H, W] that hold each value in columns of one width, in order."""
    height, width = size
    return np.tile(np.array(values)[np.arange(width) * len(values) // width], (height, 1))


def save(path: Path, picture: Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def save_labels(path: Path, labels: np.ndarray) -> Path:
    """An 8-bit grey PNG."""
    return save(path, Image.fromarray(labels.astype(np.uint8)))


def save_palette(path: Path, labels: np.ndarray) -> Path:
    """A palette PNG, whose colours are far from its indices, as VOC's are."""
    picture = Image.fromarray(labels.astype(np.uint8), "P")
    picture.putpalette([value for index in range(256) for value in (255 - index, index // 2, 7)])
    return save(path, picture)


def ade20k(root: Path, labels: Mapping[str, Sequence[Sequence[int]]]) -> Path:
    """``labels`` is split to the values in the columns of each image."""
    for split, folder, prefix in (("train", "training", "ADE_train"), ("val", "validation", "ADE_val")):
        for kind in ("images", "annotations"):
            (root / "ADEChallengeData2016" / kind / folder).mkdir(parents=True)
        for number, values in enumerate(labels[split], start=1):
            base = root / "ADEChallengeData2016"
            save(base / "images" / folder / f"{prefix}_{number:08d}.jpg", image(number))
            save_labels(base / "annotations" / folder / f"{prefix}_{number:08d}.png", columns(values))
    return root


def pascal_context(root: Path, plain: bool = False) -> Path:
    """Two training images and one validation image; the second training image has overlapping regions."""
    half, all_ = columns([1, 0]), columns([1])
    regions = {  # image: (phase, [(category, region)])
        "2008_000002": ("train", [(2, columns([1, 0, 0])), (458, columns([0, 0, 1]))]),
        "2008_000003": ("train", [(360, all_), (284, half)]),
        "2009_000001": ("val", [(9, half), (1, 1 - half)]),
        "2009_000009": ("test", []),
    }
    images, annotations = [], []
    for number, (name, (phase, found)) in enumerate(regions.items()):
        save(root / "VOCdevkit/VOC2010/JPEGImages" / f"{name}.jpg", image(number))
        image_id = int(name.replace("_", ""))
        images.append(
            {"image_id": image_id, "file_name": f"{name}.jpg", "phase": phase, "height": SIZE[0], "width": SIZE[1]}
        )
        annotations += [
            {"image_id": image_id, "category_id": category, "segmentation": encode(region, plain)}
            for category, region in found
        ]
    content = {"images": images, "annos_segmentation": annotations, "categories": [], "parts": []}
    (root / "VOCdevkit/VOC2010/trainval_merged.json").write_text(json.dumps(content))
    return root


def encode(region: np.ndarray, plain: bool = False) -> dict[str, object]:
    """COCO's run-length encoding: a string, or the plain list of runs down the columns."""
    if not plain:
        encoded = coco_mask.encode(np.asfortranarray(region.astype(np.uint8)))
        return {"size": encoded["size"], "counts": encoded["counts"].decode()}
    runs, value = [0], 0
    for pixel in region.T.ravel().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return {"size": list(region.shape), "counts": runs}


def coco_stuff(root: Path, labels: Mapping[str, Sequence[Sequence[int]]], maps: str = "stuffthingmaps") -> Path:
    for split, folder in (("train", "train2017"), ("val", "val2017")):
        for number, values in enumerate(labels[split]):
            save(root / folder / f"{number:012d}.jpg", image(number))
            save_labels(root / maps / folder / f"{number:012d}.png", columns(values))
    return root


def coco_stuff_10k(root: Path, labels: Mapping[str, Sequence[Sequence[int]]]) -> Path:
    (root / "imageLists").mkdir(parents=True)
    (root / "annotations").mkdir()
    for split, file in (("train", "train.txt"), ("val", "test.txt")):
        names = [f"COCO_train2014_{split}{number}" for number in range(len(labels[split]))]
        for number, (name, values) in enumerate(zip(names, labels[split], strict=True)):
            save(root / "images" / f"{name}.jpg", image(number))
            # MATLAB's numbers are doubles unless it is told otherwise
            savemat(root / "annotations" / f"{name}.mat", {"S": columns(values).astype(float), "names": [["a", "b"]]})
        (root / "imageLists" / file).write_text("".join(f"{name}\n" for name in names))
    return root


def voc2012(root: Path, lists: Mapping[str, Sequence[str]]) -> Path:
    """``lists`` is train and val to names; every image has background, a class of its own, and 255."""
    base = root / "VOCdevkit/VOC2012"
    (base / "ImageSets/Segmentation").mkdir(parents=True)
    for split, names in lists.items():
        (base / "ImageSets/Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for number, name in enumerate(names):
            save(base / "JPEGImages" / f"{name}.jpg", image(number))
            save_palette(base / "SegmentationClass" / f"{name}.png", columns([0, number + 1, 255]))
    return root


def sbd(root: Path, voc: Path, lists: Mapping[str, Sequence[str]]) -> Path:
    """SBD's folder; its images are in VOC's."""
    folder = root / "benchmark_RELEASE/dataset"
    (folder / "cls").mkdir(parents=True)
    for file, names in lists.items():
        (folder / f"{file}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            target = voc / "VOCdevkit/VOC2012/JPEGImages" / f"{name}.jpg"
            if not target.is_file():
                save(target, image(7))
            content = {"Boundaries": 0, "Segmentation": columns([0, 20]).astype(np.uint8), "CategoriesPresent": 20}
            savemat(folder / "cls" / f"{name}.mat", {"GTcls": content})
    return root


def cityscapes(root: Path, labels: Mapping[str, Sequence[Sequence[int]]]) -> Path:
    for split, city in (("train", "aachen"), ("val", "frankfurt")):
        for number, values in enumerate(labels[split]):
            stem = f"{city}_000000_{number:06d}"
            save(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", image(number))
            save_labels(root / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png", columns(values))
            save_labels(root / "gtFine" / split / city / f"{stem}_gtFine_instanceIds.png", columns([9]))
    return root


def camvid(root: Path, num_images: Mapping[str, int]) -> Path:
    """SegNet's folders; every mask has sky, bicyclist and unlabelled (11)."""
    for split, count in num_images.items():
        for number in range(count):
            name = f"0001TP_{split}{number:06d}.png"
            save(root / "CamVid" / split / name, image(number, (1, 3)))
            save_labels(root / "CamVid" / f"{split}annot" / name, columns([0, 10, 11], (1, 3)))
    return root


def prepared(root: Path, classes: Sequence[str], labels: Mapping[str, Sequence[Sequence[int]]]) -> Path:
    """The prepared layout itself."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    for split, found in labels.items():
        for number, values in enumerate(found):
            save(root / "images" / split / f"{number}.png", image(number))
            save_labels(root / "annotations" / split / f"{number}.png", columns(values))
    return root
