"""Cityscapes' fine annotations: the label ids of ``*_gtFine_labelIds.png`` become the 19 train ids."""

from __future__ import annotations

from locatvit.data.decoding import decode_mask
from locatvit.data.prepare.plan import Plan, PrepareOptions, base_folder, pair, scan
from locatvit.data.segmentation_sets import SETS
from locatvit.data.spec import SPLITS


def plan(options: PrepareOptions) -> Plan:
    """See ``Plan``; an image and its mask are called ``CITY_SEQUENCE_FRAME`` in the prepared folder."""
    known = SETS["cityscapes"]
    base = base_folder(options.root, known, (".", "cityscapes"), "gtFine/train", "gtFine/val")
    missing: list[str] = []
    items = []
    for split in SPLITS:
        images = scan(base / "leftImg8bit" / split, ("_leftImg8bit.png",), missing, "*/*")
        masks = scan(base / "gtFine" / split, ("_gtFine_labelIds.png",), missing, "*/*")
        items += pair(split, images, masks, missing)
    return Plan(
        known.name, known.classes, tuple(items), decode_mask, known.train_ids, known.num_images,
        missing=tuple(missing), known=known,
    )  # fmt: skip
