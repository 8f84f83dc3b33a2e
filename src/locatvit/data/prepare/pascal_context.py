"""PASCAL Context's 59 classes from ``trainval_merged.json``, the annotation file of PASCAL in Detail.

The file has ``images`` (``image_id``, ``file_name``, ``phase``: train or val, ``height``, ``width``) and
``annos_segmentation`` (``image_id``, ``category_id``, ``segmentation``: COCO's run-length encoding). A mask is
painted region by region in the file's order, later ones over earlier ones; what no region of the 59 covers is
background, which the 59-class task does not count: 255.
"""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from locatvit.data.prepare.plan import Item, Plan, PrepareOptions, base_folder, scan
from locatvit.data.segmentation_sets import SETS
from locatvit.data.spec import IGNORE_INDEX, SPLITS
from locatvit.errors import LocAtError

ANNOTATIONS = "trainval_merged.json"
_FOLDERS = (".", "VOC2010", "VOCdevkit/VOC2010")

Regions = tuple[Path, int, int, list[tuple[int, Any]]]
"""The annotation file, the image's height and width, and category and encoded region of each annotation."""


def plan(options: PrepareOptions) -> Plan:
    """See ``Plan``; an item's labels are its part of the annotation file."""
    known = SETS["pascal_context"]
    base = base_folder(options.root, known, _FOLDERS, "JPEGImages")
    path = base_folder(options.root, known, (".", *_FOLDERS[1:], "VOCdevkit"), ANNOTATIONS) / ANNOTATIONS
    missing: list[str] = []
    images = scan(base / "JPEGImages", (".jpg",), missing)
    items = _items(path, images, missing)
    return Plan(
        known.name, known.classes, tuple(items), read_labels, known.train_ids, known.num_images,
        other=IGNORE_INDEX, missing=tuple(missing), known=known,
    )  # fmt: skip


def _items(path: Path, images: dict[str, Path], missing: list[str]) -> list[Item]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        regions: dict[int, list[tuple[int, Any]]] = defaultdict(list)
        for each in content["annos_segmentation"]:
            regions[each["image_id"]].append((each["category_id"], each["segmentation"]))
        items = []
        for each in sorted(content["images"], key=lambda image: str(image["file_name"])):
            name, split = Path(each["file_name"]).stem, each["phase"]
            if split in SPLITS and name not in images:
                missing.append(f"the image {each['file_name']}")
            elif split in SPLITS:
                labels: Regions = (path, each["height"], each["width"], regions[each["image_id"]])
                items.append(Item(split, name, images[name], path, labels))
    except (ValueError, KeyError, TypeError) as error:
        raise LocAtError(
            f"{path} is not the annotation file of PASCAL in Detail ({type(error).__name__}: {error}); "
            f"download it again, see {SETS['pascal_context'].page}"
        ) from error
    return items


def read_labels(regions: Regions) -> Integer[np.ndarray, "H W"]:
    """Paint the regions: category ids, 0 where none is."""
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise LocAtError(f"{regions[0]} needs pycocotools; run: pip install 'locatvit[data]'") from error
    path, height, width, annotations = regions
    labels = np.zeros((height, width), dtype=np.int64)
    for category, encoded in annotations:
        try:
            plain = isinstance(encoded["counts"], list)
            with warnings.catch_warnings():  # pycocotools 2.0.11 has numpy 1's way to make arrays
                warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
                region = coco_mask.decode(coco_mask.frPyObjects(encoded, height, width) if plain else encoded)
            labels[region.astype(bool)] = category
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise LocAtError(
                f"{path} has a region of category {category} that is no mask of {height}x{width} "
                f"({' '.join(str(error).split())}); download the file again"
            ) from error
    return labels
