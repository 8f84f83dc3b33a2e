"""COCO-Stuff 164k: pixel maps with COCO's id less one, 255 = unlabelled, become the 171 classes.

Of COCO's 182 ids 11 have no pixels in any image (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91); the rest move up.
"""

from __future__ import annotations

from locatvit.data.decoding import decode_mask
from locatvit.data.prepare.plan import Plan, PrepareOptions, base_folder, pair, scan
from locatvit.data.segmentation_sets import SETS
from locatvit.data.spec import Split

_FOLDERS: dict[Split, str] = {"train": "train2017", "val": "val2017"}


def plan(options: PrepareOptions) -> Plan:
    """See ``Plan``; reads the folders as the archives make them, or as COCO-Stuff's page says to make them."""
    known = SETS["coco_stuff"]
    maps = next((name for name in ("stuffthingmaps", "annotations") if _has_maps(options, name)), "stuffthingmaps")
    base = base_folder(options.root, known, (".", "dataset"), *(f"{maps}/{folder}" for folder in _FOLDERS.values()))
    missing: list[str] = []
    items = []
    for split, folder in _FOLDERS.items():
        images = base / "images" / folder
        found = scan(images if images.is_dir() else base / folder, (".jpg",), missing)
        items += pair(split, found, scan(base / maps / folder, (".png",), missing), missing)
    return Plan(
        known.name, known.classes, tuple(items), decode_mask, known.train_ids, known.num_images,
        missing=tuple(missing), known=known,
    )  # fmt: skip


def _has_maps(options: PrepareOptions, name: str) -> bool:
    # COCO's own annotations, JSON files, are in a folder of the same name
    return any(
        (options.root / base / name / folder).is_dir() for base in (".", "dataset") for folder in _FOLDERS.values()
    )
