"""ADE20K's scene parsing benchmark: masks with 0 = other objects and k = class k; they become 255 and k - 1."""

from __future__ import annotations

from locatvit.data.decoding import decode_mask
from locatvit.data.prepare.plan import Plan, PrepareOptions, base_folder, pair, scan
from locatvit.data.segmentation_sets import SETS
from locatvit.data.spec import Split

_FOLDERS: dict[Split, tuple[str, str]] = {
    "train": ("training", "ADE_train_{:08d}"),
    "val": ("validation", "ADE_val_{:08d}"),
}


def plan(options: PrepareOptions) -> Plan:
    """See ``Plan``; its files are numbered without a gap, so that missing ones have names."""
    known = SETS["ade20k"]
    base = base_folder(
        options.root, known, (".", "ADEChallengeData2016"), "annotations/training", "annotations/validation"
    )
    missing: list[str] = []
    items = []
    for split, (folder, name) in _FOLDERS.items():
        images = scan(base / "images" / folder, (".jpg",), missing)
        masks = scan(base / "annotations" / folder, (".png",), missing)
        official = [name.format(number + 1) for number in range(known.num_images[split])]
        more = sorted({*images, *masks} - {*official})
        items += pair(split, images, masks, missing, [*official, *more])
    return Plan(
        known.name, known.classes, tuple(items), decode_mask, known.train_ids, known.num_images,
        missing=tuple(missing), known=known,
    )  # fmt: skip
