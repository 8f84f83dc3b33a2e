"""COCO-Stuff 10k, version 1.1: MATLAB files whose ``S`` has 0 = unlabelled and COCO's ids become the 171 classes."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Integer
from numpy import ndarray

from locatvit.data.prepare.matlab import read_matlab
from locatvit.data.prepare.plan import Plan, PrepareOptions, base_folder, pair, read_list, scan
from locatvit.data.segmentation_sets import SETS
from locatvit.data.spec import Split

_LISTS: dict[Split, str] = {"train": "train.txt", "val": "test.txt"}


def plan(options: PrepareOptions) -> Plan:
    """See ``Plan``; the official lists say which image is of which split."""
    known = SETS["coco_stuff_10k"]
    base = base_folder(options.root, known, (".", "dataset", "cocostuff-10k-v1.1"), "annotations")
    missing: list[str] = []
    images = scan(base / "images", (".jpg",), missing)
    maps = scan(base / "annotations", (".mat",), missing)
    items = []
    for split, name in _LISTS.items():
        items += pair(split, images, maps, missing, read_list(base / "imageLists" / name, known))
    return Plan(
        known.name, known.classes, tuple(items), read_labels, known.train_ids, known.num_images,
        missing=tuple(missing), known=known,
    )  # fmt: skip


def read_labels(path: Path) -> Integer[ndarray, "H W"]:
    """The map ``S``: COCO's ids, 0 = unlabelled."""
    return read_matlab(path, "S")
